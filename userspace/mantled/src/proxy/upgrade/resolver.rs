//! DNS over TCP to a resolver of the host's: in clear, as DNS is, but nothing else than DNS, and
//! what the agent is told is learnt before it can connect.

use std::sync::Arc;

use mantled_record::Path;
use mantled_wire::dns;

use super::{Upgrade, Way};
use crate::{
    error::{Cause, Failure},
    names::GroupLearner,
    proxy::{detect::Dialling, filter::Filter, upstream::Upstream},
};

impl Upgrade<'_> {
    /// Makes the way to a resolver, for a plan of [`Plan::of_resolver`].
    ///
    /// [`Plan::of_resolver`]: crate::proxy::plan::Plan::of_resolver
    ///
    /// # Errors
    /// The resolver cannot be reached.
    pub async fn resolver(self, dialling: Dialling, group: u64) -> Result<Way, Failure> {
        let dialled = self.dialled(dialling).await?;
        let permit = self.plan.clear_text.ok_or_else(|| {
            Failure::new(Cause::Internal, "DNS was about to leave without a permit")
        })?;
        self.session.goes(Path::Resolver);
        let (queries, answers) = dns::over_tcp(Arc::new(GroupLearner {
            names: Arc::clone(&self.context.names),
            group,
        }));
        Ok(Way {
            upstream: Upstream::Exposed(dialled.expose(permit)),
            from_agent: Filter::Rewrite(Box::new(queries)),
            from_server: Filter::Rewrite(Box::new(answers)),
        })
    }
}
