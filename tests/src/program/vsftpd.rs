//! vsftpd: anonymous FTP that requires TLS on all its connections.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf, succeed};

impl Program {
    /// vsftpd on port 21, on both families, for anonymous users who may upload to `in`. It
    /// requires TLS, on data connections with the session of the control connection, and that
    /// uploads end with close_notify.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn vsftpd(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        Self::vsftpd_with(lab, Some(leaf), 21, "")
    }

    /// The same on another port and with more settings; without a certificate it has no TLS.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn vsftpd_with(lab: &Lab, leaf: Option<&Leaf>, port: u16, settings: &str) -> Result<Self> {
        let root = lab.path("ftp");
        let empty = lab.path("ftp-empty");
        for directory in [&root, &root.join("in"), &empty] {
            fs::create_dir_all(directory)?;
        }
        // Its unprivileged processes go to the root by its path.
        fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o711))?;
        fs::set_permissions(root.join("in"), fs::Permissions::from_mode(0o777))?;
        let mut text = format!(
            "listen=NO\nlisten_ipv6=YES\nlisten_port={port}\nbackground=NO\n\
             anonymous_enable=YES\nlocal_enable=NO\nwrite_enable=YES\nanon_upload_enable=YES\n\
             anon_umask=022\nanon_root={}\nftp_username=ftp\nsecure_chroot_dir={}\n\
             seccomp_sandbox=NO\nxferlog_enable=NO\n{settings}\n",
            root.display(),
            empty.display()
        );
        if let Some(leaf) = leaf {
            fs::write(lab.path("ftp.pem"), &leaf.certificate)?;
            fs::write(lab.path("ftp.key"), &leaf.key)?;
            text += &format!(
                "ssl_enable=YES\nallow_anon_ssl=YES\nssl_ciphers=HIGH\n\
                 force_anon_logins_ssl=YES\nforce_anon_data_ssl=YES\n\
                 force_local_logins_ssl=YES\nforce_local_data_ssl=YES\n\
                 require_ssl_reuse=YES\nstrict_ssl_read_eof=YES\n\
                 rsa_cert_file={}\nrsa_private_key_file={}\n",
                lab.path("ftp.pem").display(),
                lab.path("ftp.key").display()
            );
        }
        let file = lab.path(&format!("vsftpd-{port}.conf"));
        fs::write(&file, text)?;
        // What anonymous users may read must not be theirs to write.
        succeed(std::process::Command::new("chown").arg("root").arg(&root))?;
        let mut command = lab.site.command("vsftpd");
        command.arg(&file);
        Self::start(lab, command, port)
    }
}
