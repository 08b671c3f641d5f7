//! stunnel in client mode.

use std::fs;

use anyhow::Result;
use mantled_tests::Lab;

use super::{Listening, Path, Running};
use crate::{machine::version, process::Service, site::NAME};

/// With its defaults, but for what the comparison needs.
pub(crate) struct Stunnel;

impl Path for Stunnel {
    fn name(&self) -> &'static str {
        "stunnel"
    }

    fn version(&self) -> Result<String> {
        let [proxy, library] =
            ["stunnel ", "Running "].map(|mark| version("stunnel", "-version", mark));
        Ok(format!("{}; {}", proxy?, library?))
    }

    fn start(&self, lab: &Lab) -> Result<Box<dyn Running>> {
        let authority = lab.path("ca.pem");
        let services = Listening::each(|port, listen, site| {
            format!(
                "[{port:?}]\nclient = yes\naccept = {listen}\nconnect = {site}\nCAfile = {}\n\
                 verifyChain = yes\ncheckHost = {NAME}\nsni = {NAME}\n",
                authority.display()
            )
        });
        let configuration = lab.path("stunnel.conf");
        fs::write(
            &configuration,
            format!("foreground = yes\npid =\nsyslog = no\ndebug = 3\n{services}"),
        )?;
        let service = Service::start(
            &lab.host,
            "stunnel",
            &[&configuration.to_string_lossy()],
            &lab.path("stunnel.log"),
        )?;
        Ok(Box::new(Listening(service)))
    }
}
