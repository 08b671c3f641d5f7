//! The Debian package of the binary under test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{Lab, mantled, succeed};

/// A .deb file.
#[derive(Clone, Debug)]
pub struct Package {
    /// Where it is.
    pub path: PathBuf,
}

impl Package {
    /// That of the debug build.
    ///
    /// # Errors
    /// It is missing, or older than the binary.
    pub fn built() -> Result<Self> {
        const REMEDY: &str =
            "`cargo xtask dist --debug --no-setup` makes it (`cargo xtask test` does that)";
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist/debug");
        let path = fs::read_dir(&directory)
            .with_context(|| format!("no package in {}; {REMEDY}", directory.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("no package in {}; {REMEDY}", directory.display()))?
            .canonicalize()?;
        ensure!(
            fs::metadata(&path)?.modified()? >= fs::metadata(mantled()?)?.modified()?,
            "{} is older than the binary under test; {REMEDY}",
            path.display()
        );
        Ok(Self { path })
    }

    /// The same with another version number, as the next release would have it.
    ///
    /// # Errors
    /// As `dpkg-deb`.
    pub fn with_version(&self, lab: &Lab, version: &str) -> Result<Self> {
        let tree = lab.path(&format!("package-{version}"));
        let path = lab.path(&format!("mantled_{version}.deb"));
        succeed(
            Command::new("dpkg-deb")
                .arg("--raw-extract")
                .args([&self.path, &tree]),
        )?;
        let control = tree.join("DEBIAN/control");
        let text: String = fs::read_to_string(&control)?
            .lines()
            .map(|line| match line.split_once(": ") {
                Some(("Version", _)) => format!("Version: {version}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        fs::write(&control, text)?;
        succeed(
            Command::new("dpkg-deb")
                .args(["-Znone", "--root-owner-group", "--build"])
                .args([&tree, &path]),
        )?;
        Ok(Self { path })
    }

    /// Its file's name.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}
