//! `mantled ca`: the authority of this host, by which routes with `tls = "terminate"` end the TLS
//! of agents.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Exit, load};
use crate::{
    ca::{self, Files},
    config::{Config, DEFAULT_PATH},
    tls::certificate,
};

/// Arguments of `mantled ca`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Configuration file, whose [ca] dir is used.
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The authority's directory, whatever the configuration says.
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make an authority: a certificate, and a key that only its owner can read.
    Init {
        /// Replace one that is there. Agents must be told to trust the new one.
        #[arg(long)]
        force: bool,
        /// Vouch for this domain and all below it, or this network, alone; can be repeated.
        /// Without it the authority vouches for any name: whoever gets its key can impersonate
        /// any server to the programs that trust it.
        #[arg(long, value_name = "NAME")]
        permit: Vec<String>,
    },
    /// Print the certificate.
    Show {
        /// What it says, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put the certificate among those that this host's programs trust, and tell what programs
    /// with a list of their own need.
    Install {
        /// Change nothing; print what would be done.
        #[arg(long)]
        print: bool,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let directory = directory(arguments)?;
    match &arguments.action {
        Action::Init { force, permit } => init(&directory, permit, *force),
        Action::Show { json } => show(&directory, *json),
        Action::Install { print } => install(&directory, *print),
    }
}

fn directory(arguments: &Arguments) -> Result<PathBuf, Exit> {
    if let Some(directory) = &arguments.dir {
        return Ok(directory.clone());
    }
    let config = match &arguments.config {
        Some(file) => load(file)?,
        None if Path::new(DEFAULT_PATH).exists() => load(Path::new(DEFAULT_PATH))?,
        None => Config::builtin(),
    };
    Ok(config.ca().dir.clone())
}

fn init(directory: &Path, permitted: &[String], force: bool) -> Result<(), Exit> {
    ca::init(directory, permitted, force).map_err(Exit::failed)?;
    println!(
        "made an authority in {}\n`mantled ca install` lets this host's programs trust it",
        directory.display()
    );
    Ok(())
}

fn show(directory: &Path, json: bool) -> Result<(), Exit> {
    let [path, _] = Files::paths(directory);
    let files = Files::read_certificate(directory).map_err(Exit::failed)?;
    if !json {
        let pem = fs::read_to_string(&path)
            .map_err(|error| Exit::failed(format!("{}: {error}", path.display())))?;
        print!("{pem}");
        return Ok(());
    }
    let facts = files
        .certificate()
        .and_then(certificate)
        .ok_or_else(|| Exit::failed(format!("{} is damaged", path.display())))?;
    let facts = serde_json::json!({
        "path": path,
        "subject": facts.subject,
        "not_after": facts.not_after,
        "sha256": facts.sha256,
    });
    println!("{facts:#}");
    Ok(())
}

/// A family of distributions' way to trust a certificate.
struct Store {
    /// Where certificates of the host's own go.
    file: &'static str,
    /// What makes programs see them.
    update: &'static str,
    /// All that are trusted, in one file.
    bundle: &'static str,
}

const STORES: [Store; 2] = [
    // Debian, Ubuntu, Alpine, SUSE's newer ones.
    Store {
        file: "/usr/local/share/ca-certificates/mantled.crt",
        update: "update-ca-certificates",
        bundle: "/etc/ssl/certs/ca-certificates.crt",
    },
    // Fedora and its relatives.
    Store {
        file: "/etc/pki/ca-trust/source/anchors/mantled.crt",
        update: "update-ca-trust",
        bundle: "/etc/pki/tls/certs/ca-bundle.crt",
    },
];

fn install(directory: &Path, print: bool) -> Result<(), Exit> {
    let files = Files::read_certificate(directory).map_err(Exit::failed)?;
    let [source, _] = Files::paths(directory);
    let store = STORES.iter().find(|store| on_path(store.update));
    let Some(store) = store else {
        return Err(Exit::failed(format!(
            "neither update-ca-certificates nor update-ca-trust is here (apt-get install \
             ca-certificates); programs must be told to trust {} one by one",
            source.display()
        )));
    };
    if print {
        println!("cp {} {}\n{}", source.display(), store.file, store.update);
    } else {
        copy(&source, Path::new(store.file))?;
        update(store)?;
        let name = files.certificate().and_then(certificate);
        println!(
            "{} is trusted by this host: written to {}, and {} was run",
            name.map_or_else(|| source.display().to_string(), |facts| facts.subject),
            store.file,
            store.update
        );
    }
    hints(store);
    Ok(())
}

fn on_path(program: &str) -> bool {
    let search = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search)
        // An operator's PATH often lacks it.
        .chain(["/usr/sbin".into()])
        .any(|directory| directory.join(program).exists())
}

/// The certificate is no secret: everybody must be able to read the copy.
fn copy(source: &Path, target: &Path) -> Result<(), Exit> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed =
        |error: std::io::Error| Exit::failed(format!("writing {}: {error}", target.display()));
    if let Some(directory) = target.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    // What is there may be a link, or be read at this moment.
    let new = target.with_extension("new");
    fs::copy(source, &new).map_err(failed)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).map_err(failed)?;
    fs::rename(&new, target).map_err(failed)
}

fn update(store: &Store) -> Result<(), Exit> {
    let search = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(store.update)
        .env("PATH", format!("{search}:/usr/sbin:/usr/bin:/sbin:/bin"))
        .output()
        .map_err(|error| Exit::failed(format!("{}: {error}", store.update)))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Exit::failed(format!(
        "{} failed ({}): {}",
        store.update,
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

/// What the host's store does not reach.
fn hints(store: &Store) {
    let Store { file, bundle, .. } = store;
    println!(
        "\nPrograms that are running read it when they are started again. Those with a list of \
         their own:\n  \
         Java       keytool -importcert -noprompt -cacerts -storepass changeit -alias mantled -file {file}\n  \
         Python     REQUESTS_CA_BUNDLE={bundle} SSL_CERT_FILE={bundle} (requests, httpx; others follow the host)\n  \
         Node.js    NODE_EXTRA_CA_CERTS={file}\n  \
         containers mount {file} into the image's store, or the variables above\n\
         A program that pins its server's certificate cannot be served so: its route needs \
         tls = \"passthrough\"."
    );
}
