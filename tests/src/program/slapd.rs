//! OpenLDAP's server.

use std::{fs, process::Command};

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf, PASSWORD, succeed};

impl Program {
    /// slapd on port 389 with one database, `dc=site`, whose manager is `cn=admin,dc=site` with
    /// the lab's password. It serves nothing without StartTLS.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn slapd(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("slapd.pem"), &leaf.certificate)?;
        fs::write(lab.path("slapd.key"), &leaf.key)?;
        fs::create_dir_all(lab.path("ldap"))?;
        let directory = lab.dir().display();
        let configuration = lab.path("slapd.conf");
        fs::write(
            &configuration,
            format!(
                "include /etc/ldap/schema/core.schema\n\
                 include /etc/ldap/schema/cosine.schema\n\
                 include /etc/ldap/schema/inetorgperson.schema\n\
                 pidfile {directory}/slapd.pid\n\
                 modulepath /usr/lib/ldap\n\
                 moduleload back_mdb\n\
                 TLSCACertificateFile {directory}/ca.pem\n\
                 TLSCertificateFile {directory}/slapd.pem\n\
                 TLSCertificateKeyFile {directory}/slapd.key\n\
                 security tls=128\n\
                 sizelimit unlimited\n\
                 database mdb\n\
                 dbnosync\n\
                 suffix dc=site\n\
                 rootdn cn=admin,dc=site\n\
                 rootpw \"{PASSWORD}\"\n\
                 directory {directory}/ldap\n"
            ),
        )?;
        let base = lab.path("base.ldif");
        fs::write(
            &base,
            "dn: dc=site\nobjectClass: dcObject\nobjectClass: organization\ndc: site\no: site\n",
        )?;
        succeed(
            Command::new("slapadd")
                .arg("-q")
                .arg("-f")
                .arg(&configuration)
                .arg("-l")
                .arg(&base),
        )?;
        let mut command = lab.site.command("slapd");
        // With a debug level it stays in the foreground.
        command
            .args(["-d", "0", "-h", "ldap://10.99.0.2/", "-f"])
            .arg(&configuration);
        Self::start(lab, command, 389)
    }
}
