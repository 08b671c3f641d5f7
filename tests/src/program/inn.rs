//! INN: one newsgroup, `site.test`.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf, succeed};

const PROGRAMS: &str = "/usr/lib/news/bin";

/// Of what matches, the last counts: without TLS nothing can be read.
const READERS: &str = r#"auth "clear" {
  hosts: "*"
  default: "<clear>"
}
auth "tls" {
  hosts: "*"
  require_encryption: true
  default: "<reader>"
}
access "reader" {
  users: "<reader>"
  newsgroups: "*"
  access: "RPA"
}
access "clear" {
  users: "<clear>"
  newsgroups: "!*"
  access: "R"
}
"#;

impl Program {
    /// INN on port 119, whose newsgroup `site.test` can be read and written to inside TLS alone.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn inn(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        let home = lab.path("inn");
        for directory in [
            "etc",
            "db",
            "run",
            "log",
            "tmp",
            "spool/articles",
            "spool/overview",
            "spool/incoming/tmp",
            "spool/incoming/bad",
            "spool/outgoing",
        ] {
            fs::create_dir_all(home.join(directory))?;
        }
        let group = |name: &str, flag| format!("{name} 0000000000 0000000001 {flag}\n");
        for (file, content) in [
            ("etc/inn.conf", settings(&home)),
            (
                "etc/storage.conf",
                "method tradspool {\n  newsgroups: *\n  class: 0\n}\n".to_owned(),
            ),
            ("etc/newsfeeds", "ME:*::\n".to_owned()),
            ("etc/incoming.conf", "streaming: true\n".to_owned()),
            ("etc/expire.ctl", "*:A:1:10:never\n".to_owned()),
            ("etc/readers.conf", READERS.to_owned()),
            (
                "db/active",
                ["control", "control.cancel", "junk", "to"]
                    .map(|name| group(name, 'n'))
                    .concat()
                    + &group("site.test", 'y'),
            ),
            ("db/newsgroups", "site.test\tTests\n".to_owned()),
            ("db/active.times", String::new()),
            ("db/history", String::new()),
            ("server.pem", leaf.certificate.clone()),
            ("server.key", leaf.key.clone()),
        ] {
            fs::write(home.join(file), content)?;
        }
        fs::set_permissions(home.join("server.key"), fs::Permissions::from_mode(0o600))?;
        succeed(Command::new("chown").args(["-R", "news:news"]).arg(&home))?;
        let news = ["--reuid=news", "--regid=news", "--init-groups"];
        succeed(
            Command::new("setpriv")
                .args(news)
                .arg(format!("{PROGRAMS}/makedbz"))
                .args(["-i", "-o", "-s", "1000", "-f"])
                .arg(home.join("db/history"))
                .env("INNCONF", home.join("etc/inn.conf")),
        )?;
        let mut command = lab.site.command(format!("{PROGRAMS}/innd"));
        command
            .args(["-d", "-f", "-4", "10.99.0.2"])
            .env("INNCONF", home.join("etc/inn.conf"));
        Self::start(lab, command, 119)
    }
}

fn settings(home: &Path) -> String {
    let at = home.display();
    format!(
        "domain: news.site.example\n\
         pathhost: news.site.example\n\
         mta: \"/bin/true %s\"\n\
         ovmethod: tradindexed\n\
         hismethod: hisv6\n\
         enableoverview: true\n\
         pathnews: /usr/lib/news\n\
         pathbin: {PROGRAMS}\n\
         pathetc: {at}/etc\n\
         pathdb: {at}/db\n\
         pathrun: {at}/run\n\
         pathlog: {at}/log\n\
         pathtmp: {at}/tmp\n\
         pathspool: {at}/spool\n\
         patharticles: {at}/spool/articles\n\
         pathoverview: {at}/spool/overview\n\
         pathincoming: {at}/spool/incoming\n\
         pathoutgoing: {at}/spool/outgoing\n\
         pathfilter: {at}/etc/filter\n\
         port: 119\n\
         tlscertfile: {at}/server.pem\n\
         tlskeyfile: {at}/server.key\n\
         pgpverify: false\n"
    )
}
