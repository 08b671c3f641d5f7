//! HAProxy as a TCP proxy that originates TLS.

use std::fs;

use anyhow::Result;
use mantled_tests::Lab;

use super::{Listening, Path, Running};
use crate::{machine::version, process::Service, site::NAME};

/// With its defaults, but for what the comparison needs.
pub(crate) struct Haproxy;

impl Path for Haproxy {
    fn name(&self) -> &'static str {
        "haproxy"
    }

    fn version(&self) -> Result<String> {
        let [proxy, library] = ["HAProxy version", "Running on OpenSSL version"]
            .map(|mark| version("haproxy", "-vv", mark));
        Ok(format!("{}; {}", proxy?, library?))
    }

    fn start(&self, lab: &Lab) -> Result<Box<dyn Running>> {
        let authority = lab.path("ca.pem");
        let listeners = Listening::each(|port, listen, site| {
            format!(
                "listen {port:?}\n  bind {listen}\n  server site {site} ssl verify required \
                 ca-file {} sni str({NAME}) verifyhost {NAME}\n",
                authority.display()
            )
        });
        let configuration = lab.path("haproxy.cfg");
        fs::write(
            &configuration,
            format!(
                "global\n  maxconn 4000\n\
                 defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 10m\n  \
                 timeout server 10m\n{listeners}"
            ),
        )?;
        let arguments = ["-db", "-f", &configuration.to_string_lossy()];
        let service = Service::start(&lab.host, "haproxy", &arguments, &lab.path("haproxy.log"))?;
        Ok(Box::new(Listening(service)))
    }
}
