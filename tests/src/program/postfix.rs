//! Postfix: mail that it is given for `site.example`.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};

use super::Program;
use crate::{Lab, Leaf, succeed};

/// Who owns mail that was delivered: `nobody`, in Debian.
const NOBODY: u32 = 65534;

const SERVICES: &str = "\
25 inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
virtual unix - n n - - virtual
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
";

impl Program {
    /// Postfix on port 25: takes mail for `site.example` inside TLS alone, from those alone whom
    /// [`Program::dovecot`] has authenticated. [`delivered`] reads it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn postfix(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        let home = lab.path("postfix");
        for directory in ["queue", "data", "mail"] {
            fs::create_dir_all(home.join(directory))?;
        }
        let postfix = nix::unistd::User::from_name("postfix")?
            .context("there is no user postfix; `cargo xtask setup` installs Postfix")?;
        chown(home.join("data"), Some(postfix.uid.as_raw()), None)?;
        chown(home.join("mail"), Some(NOBODY), Some(NOBODY))?;
        fs::write(home.join("server.pem"), &leaf.certificate)?;
        fs::write(home.join("server.key"), &leaf.key)?;
        fs::set_permissions(home.join("server.key"), fs::Permissions::from_mode(0o600))?;
        fs::write(home.join("master.cf"), SERVICES)?;
        fs::write(home.join("main.cf"), settings(&home, lab.dir()))?;
        // It makes the queue's directories.
        succeed(
            lab.site
                .command("postfix")
                .arg("-c")
                .arg(&home)
                .arg("check")
                .stderr(std::process::Stdio::null()),
        )?;
        let mut command = lab.site.command("/usr/lib/postfix/sbin/master");
        // When it ends it ends its process group.
        command.arg("-d").arg("-c").arg(&home).process_group(0);
        Self::start(lab, command, 25)
    }
}

fn settings(home: &Path, lab: &Path) -> String {
    let (home, lab) = (home.display(), lab.display());
    format!(
        "compatibility_level = 3.6\n\
         config_directory = {home}\n\
         queue_directory = {home}/queue\n\
         data_directory = {home}/data\n\
         maillog_file = {home}/log\n\
         maillog_file_prefixes = {home}\n\
         myhostname = mail.site.example\n\
         mydestination =\n\
         mynetworks =\n\
         inet_interfaces = 10.99.0.2\n\
         inet_protocols = ipv4\n\
         alias_maps =\n\
         alias_database =\n\
         local_recipient_maps =\n\
         virtual_mailbox_domains = site.example\n\
         virtual_mailbox_base = {home}/mail\n\
         virtual_mailbox_maps = static:box/\n\
         virtual_uid_maps = static:{NOBODY}\n\
         virtual_gid_maps = static:{NOBODY}\n\
         virtual_minimum_uid = 1\n\
         virtual_mailbox_limit = 0\n\
         message_size_limit = 40000000\n\
         smtpd_tls_security_level = encrypt\n\
         smtpd_tls_cert_file = {home}/server.pem\n\
         smtpd_tls_key_file = {home}/server.key\n\
         smtpd_sasl_auth_enable = yes\n\
         smtpd_sasl_type = dovecot\n\
         smtpd_sasl_path = {lab}/dovecot/authenticates\n\
         smtpd_relay_restrictions = permit_sasl_authenticated, reject\n"
    )
}

/// The messages that [`Program::postfix`] has delivered.
///
/// # Errors
/// A message cannot be read.
pub fn delivered(lab: &Lab) -> Result<Vec<String>> {
    let Ok(messages) = fs::read_dir(lab.path("postfix/mail/box/new")) else {
        return Ok(Vec::new());
    };
    messages
        .map(|message| Ok(fs::read_to_string(message?.path())?))
        .collect()
}
