//! The key from which masks' tokens are made: a file of the daemon's, made when it is first needed.
//! Whoever has it can try out values; without it, tokens of today are not those of tomorrow.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use aws_lc_rs::rand;
use mantled_mask::Key;
use zeroize::Zeroizing;

/// Its name in the state directory.
const FILE: &str = "mask.key";
const LENGTH: usize = 32;

/// The key of this host, or a new one.
///
/// # Errors
/// What is wrong with the file, and what to do.
pub(super) fn load(state_dir: &Path) -> Result<Key, String> {
    let path = state_dir.join(FILE);
    let failed = |error: io::Error| {
        format!(
            "{}: {error}; the key of masks is kept there: make it a file that mantled can read and \
             write",
            path.display()
        )
    };
    match fs::read(&path).map(Zeroizing::new) {
        Ok(bytes) => match <&[u8; LENGTH]>::try_from(bytes.as_slice()) {
            Ok(bytes) => Ok(Key::new(bytes)),
            Err(_) => Err(format!(
                "{}: it is not a key of {LENGTH} bytes; restore it, or remove it and values get other \
                 tokens from now on",
                path.display()
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(state_dir).map_err(failed)?;
            make(&path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// One that nobody keeps.
///
/// # Errors
/// There is no randomness.
pub(super) fn passing() -> Result<Key, String> {
    Ok(Key::new(&*random().map_err(|error| error.to_string())?))
}

fn random() -> io::Result<Zeroizing<[u8; LENGTH]>> {
    let mut bytes = Zeroizing::new([0; LENGTH]);
    rand::fill(bytes.as_mut_slice()).map_err(|_| io::Error::other("there is no randomness"))?;
    Ok(bytes)
}

fn make(path: &Path) -> io::Result<Key> {
    let bytes = random()?;
    let new = path.with_extension("key.new");
    // Of an attempt that was cut short.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes.as_slice())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    Ok(Key::new(&bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        load(&state).unwrap();
        let file = state.join(FILE);
        let first = fs::read(&file).unwrap();
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        load(&state).unwrap();
        assert_eq!(fs::read(&file).unwrap(), first);
        fs::write(&file, b"short").unwrap();
        assert!(load(&state).unwrap_err().contains("restore it"));
    }
}
