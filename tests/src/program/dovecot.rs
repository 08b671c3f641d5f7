//! Dovecot: IMAP, POP3, LMTP and ManageSieve, and authentication for Postfix.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
};

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf};

/// The password of everybody's mailbox.
pub const MAIL_PASSWORD: &str = "needle-password";

/// Who owns mail: `nobody`, in Debian.
const NOBODY: u32 = 65534;

impl Program {
    /// Dovecot with IMAP (143), POP3 (110), ManageSieve (4190), which let nobody in without TLS,
    /// and LMTP (24). Everybody has a mailbox, with [`MAIL_PASSWORD`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn dovecot(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        let home = lab.path("dovecot");
        fs::create_dir_all(home.join("mail"))?;
        chown(home.join("mail"), Some(NOBODY), Some(NOBODY))?;
        fs::write(home.join("server.pem"), &leaf.certificate)?;
        fs::write(home.join("server.key"), &leaf.key)?;
        fs::set_permissions(home.join("server.key"), fs::Permissions::from_mode(0o600))?;
        let at = home.display();
        let settings = format!(
            "base_dir = {at}/run\n\
             state_dir = {at}/state\n\
             log_path = /dev/stderr\n\
             protocols = imap pop3 lmtp sieve\n\
             listen = 10.99.0.2\n\
             ssl = required\n\
             ssl_cert = <{at}/server.pem\n\
             ssl_key = <{at}/server.key\n\
             disable_plaintext_auth = yes\n\
             auth_mechanisms = plain login scram-sha-256\n\
             first_valid_uid = 1\n\
             mail_location = maildir:~/Maildir\n\
             passdb {{\n driver = static\n args = password={MAIL_PASSWORD}\n}}\n\
             userdb {{\n driver = static\n args = uid={NOBODY} gid={NOBODY} home={at}/mail/%n allow_all_users=yes\n}}\n\
             service imap-login {{\n inet_listener imaps {{\n port = 0\n }}\n}}\n\
             service pop3-login {{\n inet_listener pop3s {{\n port = 0\n }}\n}}\n\
             service lmtp {{\n inet_listener lmtp {{\n address = 10.99.0.2\n port = 24\n }}\n}}\n\
             protocol lmtp {{\n postmaster_address = postmaster@site.example\n mail_plugins = sieve\n}}\n\
             service auth {{\n unix_listener {at}/authenticates {{\n mode = 0666\n }}\n}}\n"
        );
        fs::write(home.join("dovecot.conf"), settings)?;
        let mut command = lab.site.command("dovecot");
        command.arg("-F").arg("-c").arg(home.join("dovecot.conf"));
        Self::start(lab, command, 143)
    }
}
