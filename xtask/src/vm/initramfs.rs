//! What a virtual machine has for files: a cpio archive that the kernel unpacks into memory.
//!
//! The kernel takes several archives one after the other, so that what all machines share is made
//! once, and a kernel's modules are put behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};

use super::{PATIENCE, Suite, TEST_SECONDS};
use crate::{kernels::Kernel, sh};

/// What init.sh, the lab and the tests call.
const PROGRAMS: &[&str] = &[
    "awk", "chmod", "bash", "bpftool", "cat", "echo", "false", "grep", "id", "ip", "kill", "ln",
    "ls", "mkdir", "modprobe", "mount", "nsenter", "rm", "sed", "seq", "setpriv", "sh", "sleep",
    "sysctl", "tcpdump", "timeout", "true", "umount", "uname",
];

/// Debian's `psql` is a script that looks for this.
const PSQL: &str = "/usr/lib/postgresql/15/bin/psql";
/// The one that the lab's environment was made with.
const PYTHON: &str = "/usr/bin/python3";
/// Its standard library.
const PYTHON_LIBRARY: &str = "/usr/lib/python3.11";

/// Names of users, and the loader's list of directories.
const FILES: &[&str] = &[
    "/etc/passwd",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/protocols",
];

/// Debian's `/bin` and so on are links to these.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

const INIT: &str = include_str!("init.sh");

/// The archive that all machines share.
pub(crate) struct Userland(PathBuf);

impl Userland {
    /// A file to boot a kernel with. The caller removes it.
    pub(crate) fn with_modules(&self, kernel: &Kernel) -> Result<PathBuf> {
        let path = directory().join(format!("{}.cpio", kernel.release));
        let modules = directory().join("modules.cpio");
        // In the first archive /lib is a link.
        let staging = directory().join("modules");
        let _ = fs::remove_dir_all(&staging);
        fs::create_dir_all(staging.join("usr"))?;
        sh::run(
            sh::command("cp")
                .arg("-a")
                .arg(kernel.modules().join("lib"))
                .arg(staging.join("usr/lib")),
        )?;
        pack(&staging, &modules)?;
        let mut whole = File::create(&path)?;
        for part in [&self.0, &modules] {
            io::copy(&mut File::open(part)?, &mut whole)?;
        }
        fs::remove_dir_all(&staging)?;
        fs::remove_file(modules)?;
        Ok(path)
    }
}

/// Gathers programs and tests.
pub(crate) fn userland(suites: &[&Suite]) -> Result<Userland> {
    let root = Root::new(directory().join("root"))?;
    for program in PROGRAMS {
        root.program(program)?;
    }
    root.object(Path::new(PYTHON), Path::new(PYTHON))?;
    root.tree(Path::new(PYTHON_LIBRARY))?;
    for library in fs::read_dir(Path::new(PYTHON_LIBRARY).join("lib-dynload"))? {
        root.libraries(&library?.path())?;
    }
    root.object(Path::new(PSQL), Path::new("/usr/bin/psql"))?;
    for file in FILES {
        root.copy(Path::new(file), Path::new(file))?;
    }

    let built = built_tests()?;
    let mut list = String::new();
    for suite in suites {
        let program = built
            .get(suite.name)
            .with_context(|| format!("there is no tests/tests/{}.rs", suite.name))?;
        root.stripped(program)?;
        list += &format!(
            "{} {} {}\n",
            suite.name,
            program.display(),
            suite.skipped.join(" ")
        );
    }
    fs::write(root.0.join("tests"), list)?;
    let mantled = sh::target().join("debug/mantled");
    root.stripped(&mantled)?;
    root.stripped(&sh::target().join("debug/agent"))?;
    root.tree(&sh::root().join("tests/clients"))?;
    let environment = sh::root().join("target/lab/venv");
    root.copy(
        &environment.join("pyvenv.cfg"),
        &environment.join("pyvenv.cfg"),
    )?;
    root.link(PYTHON, &environment.join("bin/python"))?;

    fs::write(
        root.0.join("environment"),
        format!(
            "export MANTLED_BIN='{}' MANTLED_LAB_PATIENCE={PATIENCE}\nTEST_SECONDS={TEST_SECONDS}\n",
            mantled.display()
        ),
    )?;
    fs::write(root.0.join("init"), INIT)?;
    fs::set_permissions(root.0.join("init"), fs::Permissions::from_mode(0o755))?;
    let archive = directory().join("userland.cpio");
    pack(&root.0, &archive)?;
    fs::remove_dir_all(&root.0)?;
    Ok(Userland(archive))
}

fn directory() -> PathBuf {
    sh::target().join("lab/vm")
}

/// The lab's test programs, by the names of their files.
fn built_tests() -> Result<BTreeMap<String, PathBuf>> {
    let listed = sh::read(
        sh::cargo(["nextest", "list", "--package", "mantled-tests"]).args([
            "--list-type",
            "binaries-only",
            "--message-format",
            "json",
        ]),
    )?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let binaries = listed["rust-binaries"]
        .as_object()
        .context("no test programs")?;
    Ok(binaries
        .values()
        .filter_map(|binary| {
            let name = binary["binary-name"].as_str()?;
            Some((name.to_owned(), binary["binary-path"].as_str()?.into()))
        })
        .collect())
}

/// Files at the paths that they have here.
struct Root(PathBuf);

impl Root {
    fn new(path: PathBuf) -> Result<Self> {
        let _ = fs::remove_dir_all(&path);
        for place in ["usr", "dev", "proc", "sys", "run", "tmp", "root", "var"] {
            fs::create_dir_all(path.join(place))?;
        }
        for name in MERGED {
            fs::create_dir_all(path.join("usr").join(name))?;
            symlink(format!("usr/{name}"), path.join(name))?;
        }
        symlink("/run", path.join("var/run"))?;
        Ok(Self(path))
    }

    /// A path's place in it, whose directory is made.
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let place = self.0.join(path.strip_prefix("/").unwrap_or(path));
        let parent = place.parent().context("no directory")?;
        fs::create_dir_all(parent)?;
        Ok(place)
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let to = self.place(to)?;
        if !to.exists() {
            fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
        }
        Ok(())
    }

    fn link(&self, to: &str, path: &Path) -> Result<()> {
        Ok(symlink(to, self.place(path)?)?)
    }

    fn tree(&self, path: &Path) -> Result<()> {
        let parent = self.place(path)?;
        let parent = parent.parent().context("no directory")?;
        sh::run(sh::command("cp").arg("-a").arg(path).arg(parent))
    }

    /// A program of this host.
    fn program(&self, name: &str) -> Result<()> {
        let found = ["/usr/sbin", "/usr/bin"]
            .map(|place| Path::new(place).join(name))
            .into_iter()
            .find(|path| path.is_file());
        match found {
            Some(path) => self.object(&path, &path),
            None => bail!("{name} is missing; cargo xtask setup installs it"),
        }
    }

    fn object(&self, from: &Path, to: &Path) -> Result<()> {
        self.copy(from, to)?;
        self.libraries(from)
    }

    /// What was built here, without what only a debugger reads.
    fn stripped(&self, path: &Path) -> Result<()> {
        sh::run(
            sh::command("strip")
                .arg("--strip-debug")
                .arg("-o")
                .arg(self.place(path)?)
                .arg(path),
        )?;
        self.libraries(path)
    }

    /// The shared libraries that a program or a library is loaded with.
    fn libraries(&self, object: &Path) -> Result<()> {
        // It fails for scripts and static programs, which need none.
        let output = sh::command("ldd").arg(object).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let libraries: BTreeSet<_> = said
            .split_whitespace()
            .filter(|word| word.starts_with('/') && !word.ends_with(':'))
            .collect();
        for library in libraries {
            self.copy(Path::new(library), Path::new(library))?;
        }
        Ok(())
    }
}

fn pack(directory: &Path, archive: &Path) -> Result<()> {
    let mut find = sh::command("find")
        .args([".", "-print0"])
        .current_dir(directory)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting find")?;
    let names = find.stdout.take().context("no names")?;
    let status = sh::command("cpio")
        .args(["--quiet", "-0", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(directory)
        .stdin(names)
        .stdout(File::create(archive)?)
        .status()
        .context("cpio cannot be run")?;
    if !status.success() || !find.wait()?.success() {
        bail!("packing {} failed", directory.display());
    }
    Ok(())
}
