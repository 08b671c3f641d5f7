//! No proxy: the client goes to the server itself. These are the bounds of what a proxy can be.

use anyhow::Result;
use mantled_tests::{Lab, SITE_V4};

use super::{Path, Running, own_tls};
use crate::{client::Call, site::Port};

/// Without TLS: what the wire, the server and the client can do.
pub(crate) struct Plain;

/// The client speaks TLS (rustls): what there is to do at least.
pub(crate) struct OwnTls;

impl Path for Plain {
    fn name(&self) -> &'static str {
        "direct-plain"
    }

    fn version(&self) -> Result<String> {
        Ok("no proxy, no TLS".into())
    }

    fn start(&self, _: &Lab) -> Result<Box<dyn Running>> {
        Ok(Box::new(Self))
    }

    fn is_proxy(&self) -> bool {
        false
    }

    fn has_tls(&self) -> bool {
        false
    }
}

impl Running for Plain {
    fn call(&self, _: &Lab, _: Port) -> Call {
        Call {
            address: (SITE_V4, Port::Plain.number()).into(),
            tls: None,
        }
    }
}

impl Path for OwnTls {
    fn name(&self) -> &'static str {
        "direct-tls"
    }

    fn version(&self) -> Result<String> {
        Ok("no proxy; the client speaks TLS with rustls and aws-lc-rs, as mantled does".into())
    }

    fn start(&self, _: &Lab) -> Result<Box<dyn Running>> {
        Ok(Box::new(Self))
    }

    fn is_proxy(&self) -> bool {
        false
    }

    fn is_hybrid(&self) -> bool {
        true
    }
}

impl Running for OwnTls {
    fn call(&self, lab: &Lab, port: Port) -> Call {
        Call {
            address: (SITE_V4, port.number()).into(),
            tls: Some(own_tls(lab, port)),
        }
    }
}
