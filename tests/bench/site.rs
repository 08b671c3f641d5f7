//! What all paths lead to: one nginx, with the same file and the same small reply on every port.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use mantled_tests::{Authority, Lab, SITE_V4, eventually, run};

use crate::{
    client::{Call, Tls},
    process::{Cpus, Service, cpu_seconds},
    server,
};

/// Whom the certificate must prove.
pub(crate) const NAME: &str = "site.test";
/// Bytes of the large file.
pub(crate) const BULK: u64 = 256 << 20;
/// What the server tells of a connection that is as it should be; after it comes `.` for a full
/// handshake or `r` for a resumed session.
pub(crate) const FACTS: &str = "TLSv1.3 TLS_AES_256_GCM_SHA384 X25519 site.test";
/// The same with post-quantum key exchange.
pub(crate) const HYBRID_FACTS: &str = "TLSv1.3 TLS_AES_256_GCM_SHA384 X25519MLKEM768 site.test";

/// A port of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// TLS as nginx does it by default: a client can resume a session.
    Tls,
    /// No session can be resumed: every handshake is a full one.
    Full,
    /// An authority that nobody trusts has signed the certificate. To be refused.
    WrongAuthority,
    /// The certificate is for another name. To be refused.
    WrongName,
    /// rustls that takes X25519 only. No resumption.
    Classic,
    /// rustls that takes X25519MLKEM768 only. No resumption.
    Hybrid,
    /// Without TLS.
    Plain,
}

impl Port {
    /// Those with TLS, which every proxy must lead to.
    pub(crate) const TLS: [Self; 6] = [
        Self::Tls,
        Self::Full,
        Self::WrongAuthority,
        Self::WrongName,
        Self::Classic,
        Self::Hybrid,
    ];

    /// Its number.
    pub(crate) const fn number(self) -> u16 {
        match self {
            Self::Tls => 443,
            Self::Full => 444,
            Self::WrongAuthority => 445,
            Self::WrongName => 446,
            Self::Classic => 447,
            Self::Hybrid => 448,
            Self::Plain => 8080,
        }
    }
}

/// The servers.
#[derive(Debug)]
pub(crate) struct Site {
    nginx: Service,
    _rustls: Service,
}

impl Site {
    /// Starts them on the site's CPU and waits until all of them answer.
    pub(crate) fn start(lab: &Lab, cpus: &Cpus) -> Result<Self> {
        let stranger = Authority::new("nobody's authority")?;
        fs::write(lab.path("stranger.pem"), stranger.pem())?;
        for (name, leaf) in [
            ("site", lab.authority.leaf(&[NAME])?),
            ("wrong-authority", stranger.leaf(&[NAME])?),
            ("wrong-name", lab.authority.leaf(&["other.test"])?),
        ] {
            fs::write(lab.path(&format!("{name}.crt")), &leaf.certificate)?;
            fs::write(lab.path(&format!("{name}.key")), &leaf.key)?;
        }
        // Zeros without blocks on the disk: what is encrypted and sent does not depend on it.
        fs::File::create(lab.path("bulk"))?.set_len(BULK)?;
        let configuration = lab.path("nginx.conf");
        fs::write(&configuration, nginx(lab))?;
        let configuration = configuration.to_string_lossy().into_owned();

        let (log, rustls_log) = (lab.path("nginx.log"), lab.path("server.log"));
        let site = cpus.on_site(|| {
            Ok(Self {
                nginx: Service::start(&lab.site, "nginx", &["-c", &configuration], &log)?,
                _rustls: server::start(lab, &rustls_log)?,
            })
        })?;
        site.wait(lab).with_context(|| {
            [log, rustls_log]
                .map(|log| fs::read_to_string(log).unwrap_or_default())
                .concat()
        })?;
        Ok(site)
    }

    /// CPU seconds that nginx has used.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.nginx.pid())
    }

    /// Every port answers to whom trusts it: a path that is refused later is refused for what
    /// the certificate says, not because nobody listens.
    fn wait(&self, lab: &Lab) -> Result<()> {
        for port in Port::TLS.into_iter().chain([Port::Plain]) {
            let authority = if port == Port::WrongAuthority {
                "stranger.pem"
            } else {
                "ca.pem"
            };
            let tls = Tls {
                authority: lab.path(authority),
                name: if port == Port::WrongName {
                    "other.test"
                } else {
                    NAME
                }
                .to_owned(),
                hybrid: port == Port::Hybrid,
            };
            let call = Call {
                address: (SITE_V4, port.number()).into(),
                tls: (port != Port::Plain).then_some(tls),
            };
            let mut last = String::new();
            eventually(
                &format!("an answer of {port:?}"),
                Duration::from_secs(5),
                || {
                    let output = run(
                        &mut call.check(lab.host.command(this().ok()?)),
                        Duration::from_secs(10),
                    )
                    .ok()?;
                    last = String::from_utf8_lossy(&output.stderr).into_owned();
                    output.status.success().then_some(())
                },
            )
            .with_context(|| last)?;
        }
        Ok(())
    }
}

/// The program that runs.
pub(crate) fn this() -> Result<std::path::PathBuf> {
    Ok(std::env::current_exe()?)
}

fn nginx(lab: &Lab) -> String {
    let directory = lab.dir().display();
    let server = |port: Port, more: &str| {
        let tls = if port == Port::Plain { "" } else { " ssl" };
        format!(
            "  server {{ listen {SITE_V4}:{}{tls} backlog=4096; {more} include {directory}/answers.conf; }}\n",
            port.number()
        )
    };
    let certificate = |name: &str| {
        format!(
            "ssl_certificate {directory}/{name}.crt; ssl_certificate_key {directory}/{name}.key;"
        )
    };
    let full = "ssl_session_tickets off; ssl_session_cache off; ssl_conf_command NumTickets 0;";
    let servers = [
        server(Port::Tls, &certificate("site")),
        server(Port::Full, &(certificate("site") + full)),
        server(Port::WrongAuthority, &certificate("wrong-authority")),
        server(Port::WrongName, &certificate("wrong-name")),
        server(Port::Plain, ""),
    ]
    .concat();
    let facts = "$ssl_protocol $ssl_cipher $ssl_curve $ssl_server_name $ssl_session_reused";
    let _ = fs::write(
        lab.path("answers.conf"),
        format!(
            "root {directory};\nlocation = /bulk {{ }}\n\
             location = /small {{ default_type text/plain; return 200 \"{facts}\\n\"; }}\n"
        ),
    );
    format!(
        "user root;\ndaemon off;\nworker_processes 1;\npid {directory}/nginx.pid;\n\
         error_log stderr warn;\nworker_rlimit_nofile 65536;\n\
         events {{ worker_connections 32768; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  keepalive_timeout 600s;\n  \
         keepalive_requests 1000000000;\n  ssl_protocols TLSv1.3;\n  ssl_ecdh_curve X25519;\n  \
         ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;\n{servers}}}\n"
    )
}
