//! What users install: the Debian package, and an archive for other systems.
//!
//! Both have the same files, which are laid out below target/dist/tree first: all that stands in
//! systemd/, and what the binary says about itself (manual pages, completions). What is added to
//! systemd/ is in the next package without a word here.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    setup::{Purpose, Setup},
    sh,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What systemd takes for a unit by its name.
const UNIT_KINDS: [&str; 6] = ["service", "socket", "target", "timer", "path", "slice"];

/// The archive's binary needs nothing of its host but the kernel: musl is made to be linked
/// statically, and glibc is not.
pub(crate) const STATIC_TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-musl"
} else {
    "x86_64-unknown-linux-musl"
};

/// Build the Debian package and a static archive into target/dist
#[derive(clap::Args)]
pub(crate) struct Dist {
    /// Take for granted that `cargo xtask setup build dist` was run
    #[arg(long)]
    no_setup: bool,
    /// Only the Debian package, of the debug build, into target/dist/debug: what the tests install
    #[arg(long)]
    debug: bool,
}

impl Dist {
    pub(crate) fn run(self) -> Result<()> {
        if !self.no_setup {
            Setup::new(&[Purpose::Build, Purpose::Dist]).run()?;
        }
        if self.debug {
            sh::run(&mut sh::cargo([
                "build",
                "--locked",
                "--package",
                "mantled",
            ]))?;
            return debug_package();
        }
        let output = output();
        for old in packed(&output)? {
            fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
        }
        let build = ["build", "--locked", "--release", "--package", "mantled"];
        sh::run(&mut sh::cargo(build))?;
        let tree = Tree::lay_out(&sh::target().join("release/mantled"))?;
        pack_debian(&output, &[])?;
        sh::run(sh::cargo(build).args(["--target", STATIC_TARGET]))?;
        tree.replace_binary(&sh::target().join(STATIC_TARGET).join("release/mantled"))?;
        tree.pack_archive(&output)?;
        let mut names: Vec<_> = packed(&output)?
            .iter()
            .filter_map(|path| path.file_name().map(ToOwned::to_owned))
            .collect();
        names.sort();
        let sums = sh::read(sh::command("sha256sum").current_dir(&output).args(&names))?;
        fs::write(output.join("SHA256SUMS"), format!("{sums}\n"))?;
        println!("dist: in {}:\n{sums}", output.display());
        Ok(())
    }
}

/// The package of the debug build that is there, made quickly rather than small.
pub(crate) fn debug_package() -> Result<()> {
    let output = output().join("debug");
    fs::create_dir_all(&output)?;
    for old in packed(&output)? {
        fs::remove_file(old)?;
    }
    Tree::lay_out(&sh::target().join("debug/mantled"))?;
    pack_debian(&output, &["--fast", "--compress-type", "gz"])
}

/// Not in `CARGO_TARGET_DIR`: the package's manifest and the tests look for it here.
fn output() -> PathBuf {
    sh::root().join("target/dist")
}

/// A directory without what an earlier version had in it.
fn empty(directory: PathBuf) -> Result<PathBuf> {
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// What users get.
fn packed(output: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(output)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(output)? {
        let path = entry?.path();
        let name = path.to_string_lossy();
        if [".deb", ".tar.gz", "SHA256SUMS"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            found.push(path);
        }
    }
    Ok(found)
}

fn pack_debian(output: &Path, options: &[&str]) -> Result<()> {
    sh::run(
        sh::cargo(["deb", "--package", "mantled", "--no-build", "--locked"])
            // It warns of files below target/ that it is not to build.
            .args(["--quiet", "--output"])
            .arg(output)
            .args(options)
            .env("SOURCE_DATE_EPOCH", epoch()?),
    )
}

/// The time of the last commit, so that the same source makes the same package.
fn epoch() -> Result<String> {
    if let Ok(epoch) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(epoch);
    }
    sh::read(sh::command("git").args(["log", "-1", "--format=%ct"]))
        // A source archive has no history.
        .or_else(|_| sh::read(sh::command("stat").args(["--format", "%Y", "CHANGELOG.md"])))
}

/// The files as they lie on a host.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn lay_out(binary: &Path) -> Result<Self> {
        let tree = Self {
            root: empty(output().join("tree"))?,
        };
        tree.replace_binary(binary)?;
        tree.describe(binary)?;
        let source = sh::root().join("systemd");
        let units = tree.units(&source)?;
        for kind in ["sysusers.d", "tmpfiles.d"] {
            for entry in fs::read_dir(source.join(kind))? {
                let entry = entry?;
                let target = Path::new("usr/lib").join(kind).join(entry.file_name());
                tree.copy(&entry.path(), &target)?;
            }
        }
        tree.copy(
            &source.join("mantled.toml"),
            Path::new("etc/mantled/mantled.toml"),
        )?;
        // In the places where their links lead.
        let documents = Path::new("usr/share/doc/mantled");
        for name in [
            "README.md",
            "SECURITY.md",
            "LICENSE",
            "LICENSE-MIT",
            "systemd/README.md",
        ] {
            tree.copy(&sh::root().join(name), &documents.join(name))?;
        }
        for entry in fs::read_dir(sh::root().join("docs"))? {
            let entry = entry?;
            let target = documents.join("docs").join(entry.file_name());
            tree.copy(&entry.path(), &target)?;
        }
        // What an operator installs elsewhere.
        for name in [
            "containers.conf",
            "grafana-dashboard.json",
            "prometheus-alerts.yml",
        ] {
            tree.copy(
                &source.join(name),
                &Path::new("usr/share/mantled").join(name),
            )?;
        }
        // cargo-deb compresses what has this name.
        tree.copy(
            &sh::root().join("CHANGELOG.md"),
            &documents.join("changelog"),
        )?;
        fill_in_scripts(&source.join("debian"), &units)?;
        fs::write(output().join("changelog"), debian_changelog()?)?;
        Ok(tree)
    }

    /// Every unit in systemd/.
    fn units(&self, source: &Path) -> Result<Vec<Unit>> {
        let mut units = Vec::new();
        for entry in fs::read_dir(source)? {
            let path = entry?.path();
            let extension = path.extension().unwrap_or_default().to_string_lossy();
            if !UNIT_KINDS.contains(&&*extension) {
                continue;
            }
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            self.copy(&path, &Path::new("usr/lib/systemd/system").join(&name))?;
            let text = fs::read_to_string(&path)?;
            units.push(Unit {
                name,
                enabled: text.lines().any(|line| line == "[Install]"),
            });
        }
        units.sort_by(|one, other| one.name.cmp(&other.name));
        ensure!(
            units.iter().any(|unit| unit.name == "mantled.service"),
            "systemd/ has no mantled.service"
        );
        Ok(units)
    }

    /// What the binary says about itself.
    fn describe(&self, binary: &Path) -> Result<()> {
        let binary = binary.to_string_lossy();
        let manual = self.path(Path::new("usr/share/man/man1"))?;
        sh::run(sh::command(&binary).arg("man").arg(manual))?;
        for (shell, target) in [
            ("bash", "usr/share/bash-completion/completions/mantled"),
            ("zsh", "usr/share/zsh/vendor-completions/_mantled"),
            ("fish", "usr/share/fish/vendor_completions.d/mantled.fish"),
        ] {
            let script = sh::read(sh::command(&binary).args(["completions", shell]))?;
            self.write(Path::new(target), &format!("{script}\n"))?;
        }
        Ok(())
    }

    fn replace_binary(&self, binary: &Path) -> Result<()> {
        let target = self.path(Path::new("usr/bin/mantled"))?;
        sh::run(sh::command("strip").arg("-o").arg(&target).arg(binary))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn pack_archive(&self, output: &Path) -> Result<()> {
        let name = format!("mantled-{VERSION}-{STATIC_TARGET}");
        let archive = output.join(format!("{name}.tar.gz"));
        sh::run(
            sh::command("tar")
                .args(["--create", "--gzip", "--file"])
                .arg(&archive)
                .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
                .arg(format!("--mtime=@{}", epoch()?))
                .arg(format!("--transform=s,^\\.,{name},"))
                .arg("--directory")
                .arg(&self.root)
                .arg("."),
        )
    }

    fn copy(&self, source: &Path, target: &Path) -> Result<()> {
        let text =
            fs::read_to_string(source).with_context(|| format!("reading {}", source.display()))?;
        self.write(target, &text)
    }

    fn write(&self, target: &Path, text: &str) -> Result<()> {
        let path = self.path(target)?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(())
    }

    /// A path in it, whose directory is there.
    fn path(&self, below: &Path) -> Result<PathBuf> {
        let path = self.root.join(below);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok(path)
    }
}

struct Unit {
    name: String,
    /// It has an [Install] section.
    enabled: bool,
}

/// The package's scripts have to know the units also when their files are gone.
fn fill_in_scripts(source: &Path, units: &[Unit]) -> Result<()> {
    let names = |wanted: fn(&&Unit) -> bool| {
        let names: Vec<&str> = units
            .iter()
            .filter(wanted)
            .map(|unit| &*unit.name)
            .collect();
        names.join(" ")
    };
    // cargo-deb takes every script that is there.
    let target = empty(output().join("scripts"))?;
    for script in ["postinst", "prerm", "postrm"] {
        let text = fs::read_to_string(source.join(script))
            .with_context(|| format!("systemd/debian/{script}"))?
            .replace("@UNITS@", &names(|_| true))
            .replace("@ENABLED@", &names(|unit| unit.enabled))
            .replace(
                "@SERVICES@",
                &names(|unit| unit.name.ends_with(".service") && unit.name != "mantled.service"),
            );
        if let Some(line) = text.lines().find(|line| line.contains("=\"@")) {
            bail!("systemd/debian/{script}: nothing is known for {line}");
        }
        fs::write(target.join(script), text)?;
    }
    Ok(())
}

/// What package tools read; what has changed stands beside it.
fn debian_changelog() -> Result<String> {
    let mut date = sh::command("date");
    date.args(["--utc", "--rfc-email"])
        .arg(format!("--date=@{}", epoch()?));
    Ok(format!(
        "mantled ({VERSION}-1) unstable; urgency=medium\n\n  \
         * See /usr/share/doc/mantled/changelog.gz.\n\n -- {}  {}\n",
        maintainer()?,
        sh::read(&mut date)?
    ))
}

fn maintainer() -> Result<String> {
    let manifest = fs::read_to_string(sh::root().join("userspace/mantled/Cargo.toml"))?;
    manifest
        .lines()
        .find_map(|line| line.strip_prefix("maintainer = \"")?.strip_suffix('"'))
        .map(ToOwned::to_owned)
        .context("userspace/mantled/Cargo.toml names no maintainer")
}
