//! The server that all paths lead to: nginx, with the same file and the same small reply on every
//! port.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use mantled_tests::{Authority, Lab, eventually, run};

use crate::{
    process::{Cpus, Service, cpu_seconds},
    server,
};

/// Whom the certificate must prove.
pub(crate) const NAME: &str = "site.test";
/// Bytes of the large file.
pub(crate) const BULK: u64 = 256 << 20;
/// What the server tells of a connection with which all is as it should be; then follows `.` for
/// a full handshake or `r` for a resumed session.
pub(crate) const TLS_FACTS: &str = "TLSv1.3 TLS_AES_256_GCM_SHA384 X25519 site.test";
/// As above, after a post-quantum handshake.
pub(crate) const POST_QUANTUM_FACTS: &str = "TLSv1.3 TLS_AES_256_GCM_SHA384 X25519MLKEM768 site.test";

/// Something that the site offers on a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service_ {
    Main,
}
