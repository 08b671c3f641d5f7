//! Debian's kernels, each as a directory with `vmlinuz` and the modules that the tests may need,
//! and the emulator that boots them.
//!
//! The kernels come from several releases of Debian, none of which becomes a package source of the
//! machine: apt gets a configuration, and lists, of its own.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// Where to look for kernels.
const RELEASES: [&str; 5] = [
    "bullseye",
    "bookworm",
    "bookworm-backports",
    "trixie",
    "trixie-backports",
];

/// The kernels to have, beside the newest: one too old, the floor, and the one of Debian 13.
const SERIES: [&str; 3] = ["5.10", "6.1", "6.12"];

/// Names the packages of the kernel proper.
const META: &str = "linux-image-cloud-amd64";

/// Debian 12's own emulator, version 7.2, crashes Linux 6.12.
const EMULATOR: [&str; 4] = ["qemu-system-x86", "kmod", "cpio", "binutils"];
const EMULATOR_RELEASES: [&str; 2] = ["bookworm", "bookworm-backports"];

/// What else a test may load is built into these kernels.
const MODULES: [&str; 5] = ["arch", "crypto", "lib", "net", "drivers/net"];

/// The newest release comes last.
pub(crate) fn installed() -> Result<Vec<Kernel>> {
    let Ok(entries) = fs::read_dir(directory()) else {
        return Ok(Vec::new());
    };
    let mut kernels = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let release = path.file_name().unwrap_or_default().to_string_lossy();
        if path.join("vmlinuz").is_file() {
            kernels.push(Kernel {
                release: release.into_owned(),
                path,
            });
        }
    }
    kernels.sort_by(|a, b| by_number(&a.release, &b.release));
    Ok(kernels)
}

/// One that can be booted.
pub(crate) struct Kernel {
    /// What `uname -r` says of it.
    pub(crate) release: String,
    path: PathBuf,
}

impl Kernel {
    pub(crate) fn image(&self) -> PathBuf {
        self.path.join("vmlinuz")
    }

    /// `lib/modules/RELEASE` is below it.
    pub(crate) fn modules(&self) -> PathBuf {
        self.path.join("root")
    }

    /// Is it of that series, such as 6.1?
    pub(crate) fn is_of(&self, series: &str) -> bool {
        is_of(&self.release, series)
    }
}

/// Installs the emulator and unpacks the kernels.
pub(crate) fn install() -> Result<()> {
    if !sh::has("qemu-system-x86_64") || !sh::has("depmod") {
        let apt = Apt::new("emulator", &EMULATOR_RELEASES)?;
        // Nothing of what is installed may change for a test.
        let mut install = apt.command("apt-get");
        install
            .args(["-q", "-y", "--no-install-recommends", "--no-remove"])
            .args(["-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Use-Pty=0"])
            .args(["-t", EMULATOR_RELEASES[1], "install"])
            .args(EMULATOR)
            .env("DEBIAN_FRONTEND", "noninteractive");
        sh::run_as(
            &format!("apt-get install {}", EMULATOR.join(" ")),
            &mut install,
        )?;
    }
    let apt = Apt::new("kernels", &RELEASES)?;
    let offered = offered(&sh::read(apt.command("apt-cache").args(["show", META]))?);
    let newest = offered
        .last()
        .context("no release of Debian offers a kernel")?;
    println!("setup: the newest packaged kernel is {newest}");
    let mut wanted = vec![newest];
    for series in SERIES {
        let of_series = |release: &&String| is_of(release, series);
        match offered.iter().rev().find(of_series) {
            Some(release) => wanted.push(release),
            None => println!("setup: warning: no kernel {series} is packaged any more"),
        }
    }
    for release in &wanted {
        if directory().join(release).join("vmlinuz").is_file() {
            println!("setup: kernel {release}: present");
        } else {
            unpack(&apt, release)?;
        }
    }
    // Of an older state of the archive: the matrix boots one of a series.
    for kernel in installed()? {
        if !wanted.contains(&&kernel.release) {
            fs::remove_dir_all(&kernel.path)?;
        }
    }
    Ok(())
}

fn directory() -> PathBuf {
    sh::target().join("lab/kernels")
}

/// The kernels that versions of the meta package depend on, the newest last.
fn offered(shown: &str) -> Vec<String> {
    let mut releases: Vec<String> = shown
        .lines()
        .filter_map(|line| line.strip_prefix("Depends: "))
        .flat_map(|line| line.split([',', ' ']))
        .filter_map(|word| word.strip_prefix("linux-image-"))
        .map(str::to_owned)
        .collect();
    releases.sort_by(|a, b| by_number(a, b));
    releases.dedup();
    releases
}

fn is_of(release: &str, series: &str) -> bool {
    release
        .strip_prefix(series)
        .is_some_and(|rest| rest.starts_with('.'))
}

fn by_number(a: &str, b: &str) -> Ordering {
    let numbers = |release: &str| -> Vec<u32> {
        release
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b))
}

/// Newer kernels are split into packages that the image depends on.
fn unpack(apt: &Apt, release: &str) -> Result<()> {
    println!("setup: unpacking kernel {release}");
    let image = format!("linux-image-{release}");
    let shown = sh::read(apt.command("apt-cache").args(["show", &image]))?;
    let parts = shown
        .lines()
        .filter_map(|line| line.strip_prefix("Depends: "))
        .flat_map(|line| line.split([',', ' ']))
        .filter(|word| word.ends_with(&format!("-{release}")));
    let whole = directory().join(format!("{release}.unpacking"));
    let _ = fs::remove_dir_all(&whole);
    fs::create_dir_all(&whole)?;
    sh::run(
        apt.command("apt-get")
            .args(["-qq", "download", &image])
            .args(parts)
            .current_dir(&whole),
    )?;
    let tree = whole.join("tree");
    for file in fs::read_dir(&whole)? {
        sh::run(
            sh::command("dpkg-deb")
                .arg("-x")
                .arg(file?.path())
                .arg(&tree),
        )?;
    }

    let made = whole.join("made");
    let to = made.join("root/lib/modules").join(release);
    fs::create_dir_all(&to)?;
    let from = ["lib/modules", "usr/lib/modules"]
        .map(|place| tree.join(place).join(release))
        .into_iter()
        .find(|place| place.is_dir())
        .with_context(|| format!("{image} has no modules"))?;
    for part in MODULES {
        let source = Path::new("kernel").join(part);
        sh::run(
            sh::command("cp")
                .args(["-a", "--parents"])
                .arg(&source)
                .arg(&to)
                .current_dir(&from),
        )?;
    }
    for list in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        fs::copy(from.join(list), to.join(list))?;
    }
    sh::run(
        sh::command("depmod")
            .arg("-b")
            .arg(made.join("root"))
            .arg(release),
    )?;
    let image = [
        tree.join("boot").join(format!("vmlinuz-{release}")),
        from.join("vmlinuz"),
    ];
    let image = image.iter().find(|file| file.is_file());
    fs::copy(image.context("no vmlinuz")?, made.join("vmlinuz"))?;
    fs::rename(&made, directory().join(release))?;
    fs::remove_dir_all(&whole)?;
    Ok(())
}

/// apt with package sources and lists of its own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(name: &str, releases: &[&str]) -> Result<Self> {
        let directory = sh::target().join("lab/apt").join(name);
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(sub))?;
        }
        let mirror = mirror()?;
        let sources: String = releases
            .iter()
            .map(|release| {
                format!(
                    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                     {mirror} {release} main\n"
                )
            })
            .collect();
        let list = directory.join("sources.list");
        fs::write(&list, sources)?;
        let directory = directory.display();
        let apt = Self {
            options: [
                format!("Dir::Etc::sourcelist={}", list.display()),
                "Dir::Etc::sourceparts=-".to_owned(),
                format!("Dir::State::lists={directory}/lists"),
                format!("Dir::Cache={directory}/cache"),
                "APT::Sandbox::User=root".to_owned(),
            ]
            .into(),
        };
        // A release that does not answer any more lacks in what is offered, which is told there.
        if sh::run(apt.command("apt-get").args(["-qq", "update"])).is_err() {
            println!("setup: some release of Debian did not answer; going on");
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = sh::command(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// From where the machine itself gets Debian.
fn mirror() -> Result<String> {
    let targets = sh::read(sh::command("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        "Label: Debian",
        "Component: main",
    ]))?;
    match targets.lines().next() {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!("apt knows no mirror of Debian; `apt-get update` helps if it never ran"),
    }
}
