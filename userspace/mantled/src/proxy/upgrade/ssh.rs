//! SSH: it encrypts by itself, and the proxy cannot verify the server's key. It passes where native
//! encryption may, with both banners in the record.

use mantled_record::Path;
use mantled_wire::ssh::Guard;

use super::{Upgrade, Way};
use crate::{
    config::TlsMode,
    error::{Cause, Failure},
    proxy::{detect::Dialling, filter::Filter, upstream::Upstream},
};

impl Upgrade<'_> {
    pub(super) async fn ssh(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        if !self.plan.native {
            return Err(needs_route());
        }
        if self.plan.tls != TlsMode::Passthrough {
            self.would_refuse(needs_route());
        }
        let dialled = self.dialled(dialling).await?;
        self.note_port(&dialled);
        self.goes(Path::Native)?;
        Ok(Way {
            upstream: Upstream::Native(dialled.native()),
            from_agent: Filter::Ssh(Guard::default()),
            from_server: Filter::Ssh(Guard::default()),
        })
    }
}

/// Why SSH does not pass.
pub(super) fn needs_route() -> Failure {
    Failure::new(
        Cause::NativeSsh,
        "the agent speaks SSH, whose server mantled cannot verify; \
         a route with tls = \"passthrough\" allows it",
    )
}
