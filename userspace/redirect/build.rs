//! Builds the kernel object from `ebpf/`, which the crate embeds.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain, build_ebpf};

const TOOLCHAIN: &str = "MANTLED_EBPF_TOOLCHAIN";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed={TOOLCHAIN}");
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest
        .ancestors()
        .nth(2)
        .context("the crate does not lie in userspace/redirect of the workspace")?;
    let ebpf = root.join("ebpf");
    // SAFETY: build scripts have one thread here. The object needs core built for the BPF target,
    // which a stable compiler does only when told so.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "1") };
    build_ebpf(
        [Package {
            name: "mantled-ebpf",
            root_dir: ebpf.to_str().context("the path is not UTF-8")?,
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain()),
    )
    .context("the kernel object does not build; `cargo xtask setup` installs what it needs")
}

/// The compiler that has core's source: the one named, a nightly with rust-src, or Debian's under
/// the name that `cargo xtask setup` gives it.
fn toolchain() -> String {
    if let Ok(named) = std::env::var(TOOLCHAIN) {
        return named;
    }
    let nightly_source = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .is_some_and(|sysroot| {
            Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/Cargo.lock")
                .exists()
        });
    if nightly_source { "nightly" } else { "ebpf" }.to_owned()
}
