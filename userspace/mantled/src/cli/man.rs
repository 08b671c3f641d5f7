//! `mantled man`: the manual pages, one for each subcommand, made from the command line's own
//! descriptions.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory as _};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, roman},
};

use super::Exit;
use crate::config::DEFAULT_PATH;

const MANUAL: &str = "mantled manual";

/// As the module of the command line promises them.
const EXIT_STATUS: [(&str, &str); 5] = [
    ("0", "Done."),
    ("1", "Failed."),
    ("2", "Wrong usage, or an invalid configuration."),
    ("3", "Refused by policy."),
    ("4", "A kernel feature or a privilege is missing."),
];

const FILES: [(&str, &str); 5] = [
    (
        DEFAULT_PATH,
        "Configuration; the shipped one shows every key.",
    ),
    (
        "/var/lib/mantled",
        "State: the authority of this host, enrolments, and in sessions the records.",
    ),
    (
        "/run/mantled",
        "What lasts as long as the daemon: its lock, its socket.",
    ),
    (
        "/sys/fs/bpf/mantled",
        "Programs and maps that outlive the daemon; \"mantled detach --all\" removes them.",
    ),
    (
        "/usr/share/doc/mantled",
        "README, the threat model (SECURITY.md), licences and changes.",
    ),
];

/// Arguments of `mantled man`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where all pages are written; made where it is missing. Without it the main page goes to
    /// standard output: `mantled man | man -l -` shows it.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    // Its own `help` subcommand needs no page.
    let mut command = super::Arguments::command().disable_help_subcommand(true);
    command.build();
    let Some(directory) = &arguments.directory else {
        let page = page(&command, true).map_err(Exit::failed)?;
        return io::stdout()
            .write_all(&page)
            .map_err(|error| Exit::failed(format!("writing the page: {error}")));
    };
    let failed = |error| Exit::failed(format!("writing into {}: {error}", directory.display()));
    fs::create_dir_all(directory).map_err(failed)?;
    let pages = write(&command, true, directory).map_err(failed)?;
    println!("wrote {pages} pages into {}", directory.display());
    Ok(())
}

/// Writes the page of a command and those of its subcommands, and counts them.
fn write(command: &Command, is_main: bool, directory: &Path) -> io::Result<usize> {
    let name = Man::new(command.clone()).get_filename();
    fs::write(directory.join(name), page(command, is_main)?)?;
    let mut pages = 1;
    for subcommand in shown(command) {
        pages += write(subcommand, false, directory)?;
    }
    Ok(pages)
}

fn page(command: &Command, is_main: bool) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone())
        .manual(MANUAL)
        .source(concat!("mantled ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render(&mut page)?;
    let mut rest = Roff::new();
    list(&mut rest, "EXIT STATUS", &EXIT_STATUS);
    if command.get_name() == "exec" {
        rest.control("TP", []);
        rest.text([bold("others")]);
        rest.text([roman("That of the command, once it has run.")]);
    }
    if is_main {
        list(&mut rest, "FILES", &FILES);
    }
    rest.control("SH", ["SEE ALSO"]);
    if is_main {
        rest.text(see_also(command));
    } else {
        rest.text([bold("mantled"), roman("(1)")]);
    }
    rest.to_writer(&mut page)?;
    Ok(page)
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set())
}

fn list(page: &mut Roff, heading: &str, entries: &[(&str, &str)]) {
    page.control("SH", [heading]);
    for (term, meaning) in entries {
        page.control("TP", []);
        page.text([bold(*term)]);
        page.text([roman(*meaning)]);
    }
}

fn see_also(command: &Command) -> Vec<Inline> {
    let mut words = Vec::new();
    for subcommand in shown(command) {
        words.push(bold(format!("mantled-{}", subcommand.get_name())));
        words.push(roman("(1), "));
    }
    words.push(bold("systemd.service"));
    words.push(roman("(5), "));
    words.push(bold("cgroups"));
    words.push(roman("(7)"));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        run(&Arguments {
            directory: Some(directory.path().join("man1")),
        })
        .unwrap();
        let page = |name: &str| fs::read_to_string(directory.path().join("man1").join(name));
        for subcommand in shown(&super::super::Arguments::command()) {
            let page = page(&format!("mantled-{}.1", subcommand.get_name())).unwrap();
            assert!(page.contains(".SH \"EXIT STATUS\""), "{page}");
        }
        assert!(page("mantled-ca-init.1").is_ok());
        assert!(page("mantled-guard.1").is_err(), "hidden");
        let main = page("mantled.1").unwrap();
        assert!(main.contains("/etc/mantled/mantled.toml"), "{main}");
    }
}
