//! The lab on other kernels: `cargo xtask test vm` boots each kernel that `cargo xtask setup vm`
//! has unpacked in a virtual machine, and runs there those of the lab's tests that prove that
//! connections are redirected and that nothing leaves past the proxy.
//!
//! A machine is a kernel and an initramfs: the programs of this host that the tests call, with
//! their libraries, the daemon, and the tests, all under the paths that they have here. Its first
//! process is `vm/init.sh`, whose words on the console are the result. The processor is
//! emulated, about twenty times slower, so the tests there get more patience.

mod initramfs;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    kernels::{self, Kernel},
    sh::{self, Needs},
};

/// Run the tests of redirection and enforcement on other kernels, in virtual machines
#[derive(clap::Args)]
pub(crate) struct Vm {
    /// The series of kernels, such as 6.1 [default: all that are there]
    series: Vec<String>,
    /// Run only these suites
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// What a machine may take at most
    #[arg(long, value_name = "SECONDS", default_value_t = 1500)]
    limit: u64,
    /// Use the processor's own virtualization
    #[arg(long)]
    kvm: bool,
}

/// A file of tests/tests, and which of its tests stay out, since they prove nothing about a kernel.
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    pub(crate) skipped: &'static [&'static str],
}

const SUITES: &[Suite] = &[
    Suite {
        name: "connects",
        // A matter of load: an hour where the processor is emulated.
        skipped: &["twenty_thousand_connects_find_their_origin"],
    },
    Suite {
        name: "refusals",
        // PostgreSQL's server is not taken along.
        skipped: &["observe_lets_clear_text_pass_and_says_what_enforce_would_do"],
    },
    Suite {
        name: "backstop",
        skipped: &[],
    },
    Suite {
        name: "lifecycle",
        skipped: &[],
    },
    Suite {
        name: "reload",
        skipped: &[],
    },
];

/// Refused by `mantled doctor`, which has to say why.
const TOO_OLD: &str = "5.10";
/// What it says there.
const MISSING: &str = "SO_NETNS_COOKIE (Linux 5.14)";
/// The exit code for it.
const MISSING_FEATURE: &str = "4";

/// Enough for every test alone; a test that hangs does not take the others with it.
const TEST_SECONDS: u32 = 240;
/// By what the tests' limits are multiplied.
const PATIENCE: u32 = 10;

impl Vm {
    pub(crate) fn run(self) -> Result<()> {
        let mut kernels = kernels::installed()?;
        if !self.series.is_empty() {
            for series in &self.series {
                if !kernels.iter().any(|kernel| kernel.is_of(series)) {
                    return Err(missing(&format!("kernel {series}")));
                }
            }
            kernels.retain(|kernel| self.series.iter().any(|series| kernel.is_of(series)));
        }
        if kernels.is_empty() {
            return Err(missing("kernel"));
        }
        if !sh::has("qemu-system-x86_64") {
            return Err(missing("qemu-system-x86_64"));
        }
        let suites: Vec<&Suite> = SUITES
            .iter()
            .filter(|suite| {
                self.suite.is_empty() || self.suite.iter().any(|name| name == suite.name)
            })
            .collect();
        if suites.is_empty() {
            bail!("no such suite");
        }
        sh::run(&mut sh::cargo(["build", "--package", "mantled"]))?;
        let userland = initramfs::userland(&suites)?;
        // Not found out: there are machines where KVM opens and then crashes the emulator.
        let accelerator = if self.kvm { "kvm" } else { "tcg,thread=multi" };
        let limit = Duration::from_secs(self.limit);
        let mut outcomes = Vec::new();
        for kernel in &kernels {
            let outcome = boot(kernel, &userland, accelerator, limit)
                .with_context(|| format!("kernel {}", kernel.release))?;
            outcomes.push((kernel, outcome));
        }
        table(&outcomes, &suites);
        let failed: Vec<_> = outcomes
            .iter()
            .filter(|(kernel, outcome)| !outcome.is_right(kernel, &suites))
            .map(|(kernel, _)| kernel.release.as_str())
            .collect();
        if !failed.is_empty() {
            bail!("not as it should be on {}", failed.join(", "));
        }
        Ok(())
    }
}

fn missing(what: &str) -> anyhow::Error {
    Needs(format!("test: no {what}; please run: cargo xtask setup vm")).into()
}

/// What a machine said.
#[derive(Default)]
struct Outcome {
    /// The exit code of `mantled doctor`.
    doctor: Option<String>,
    /// It named the feature that the kernel lacks.
    named: bool,
    /// Passed and failed tests of each suite.
    suites: BTreeMap<String, (u32, u32)>,
    /// It came to the end of its list.
    ended: bool,
    took: Duration,
}

impl Outcome {
    fn is_right(&self, kernel: &Kernel, suites: &[&Suite]) -> bool {
        let refused = self.doctor.as_deref() == Some(MISSING_FEATURE) && self.named;
        let works = self.doctor.as_deref() == Some("0")
            && suites
                .iter()
                .all(|suite| matches!(self.suites.get(suite.name), Some((1.., 0))));
        self.ended
            && if kernel.is_of(TOO_OLD) {
                refused
            } else {
                works
            }
    }

    fn hear(&mut self, line: &str) {
        if line.contains(MISSING) {
            self.named = true;
        }
        let Some(said) = line.strip_prefix("@@ ") else {
            return;
        };
        let words: Vec<&str> = said.split_whitespace().collect();
        match words.as_slice() {
            ["doctor", code] => self.doctor = Some((*code).to_owned()),
            ["test", suite, _, verdict, ..] => {
                let (passed, failed) = self.suites.entry((*suite).to_owned()).or_default();
                if *verdict == "passed" {
                    *passed += 1;
                } else {
                    *failed += 1;
                }
            }
            ["end"] => self.ended = true,
            _ => {}
        }
    }
}

/// Runs a machine to its end. Its console goes to a file, what counts of it to this one.
fn boot(
    kernel: &Kernel,
    userland: &initramfs::Userland,
    accelerator: &str,
    limit: Duration,
) -> Result<Outcome> {
    let begun = Instant::now();
    let path = sh::target().join(format!("lab/vm/{}.log", kernel.release));
    eprintln!("+ kernel {}, console in {}", kernel.release, path.display());
    let mut log = File::create(&path)?;
    let initrd = userland.with_modules(kernel)?;
    let mut machine = Machine(
        Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", accelerator])
            // tcpdump alone takes 512 MiB for its buffer, and the files are in memory.
            .args(["-cpu", "max", "-m", "4096", "-smp", "2"])
            .args(["-nographic", "-no-reboot", "-nic", "none"])
            .args([
                "-append",
                "console=ttyS0 panic=-1 mitigations=off quiet random.trust_cpu=on",
            ])
            .arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(&initrd)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting qemu-system-x86_64")?,
    );
    let console = machine.0.stdout.take().context("no console")?;
    let listener = std::thread::spawn(move || -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for line in BufReader::new(console).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            let line = line.trim_end();
            writeln!(log, "{:7.1} {line}", begun.elapsed().as_secs_f32())?;
            outcome.hear(line);
            if line.starts_with("@@ ") || line.starts_with("    ") {
                println!("{:7.1} {line}", begun.elapsed().as_secs_f32());
            }
        }
        Ok(outcome)
    });
    while machine.0.try_wait()?.is_none() {
        if begun.elapsed() > limit {
            println!("the machine is ended after {limit:?}");
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(machine);
    let mut outcome = listener
        .join()
        .map_err(|_| anyhow::anyhow!("reading the console failed"))??;
    outcome.took = begun.elapsed();
    fs::remove_file(initrd)?;
    Ok(outcome)
}

/// The emulator; it ends when this is dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn table(outcomes: &[(&Kernel, Outcome)], suites: &[&Suite]) {
    print!("\n{:32} {:>8}", "kernel", "doctor");
    for suite in suites {
        print!(" {:>10}", suite.name);
    }
    println!(" {:>8}", "seconds");
    for (kernel, outcome) in outcomes {
        let doctor = match outcome.doctor.as_deref() {
            Some("0") => "ok",
            Some(MISSING_FEATURE) => "refused",
            Some(_) => "failed",
            None => "-",
        };
        print!("{:32} {doctor:>8}", kernel.release);
        for suite in suites {
            let cell = match outcome.suites.get(suite.name) {
                Some((passed, failed)) => format!("{passed}/{}", passed + failed),
                None => "-".to_owned(),
            };
            print!(" {cell:>10}");
        }
        println!(" {:>8}", outcome.took.as_secs());
    }
    println!();
}
