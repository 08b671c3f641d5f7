//! Connectors that are rebuilt when the files of their trust change.
//!
//! Files are looked at once a second. That finds every way in which they are replaced (in place,
//! by rename, by a link above them that is pointed elsewhere) with a few stat(2) calls, where a
//! watch on the files themselves would be left looking at those that were replaced.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::{
    Connector, Connectors,
    material::{Mark, Material, files},
};
use crate::config::Config;

/// Time between two looks. A change is acted upon when it has stood for one: certificate and key
/// are two files, and are written one after the other.
const LOOK: Duration = Duration::from_secs(1);

/// The connectors that new connections use; cheap to clone.
#[derive(Clone, Debug)]
pub struct LiveConnectors(Arc<RwLock<Arc<Connectors>>>);

impl LiveConnectors {
    /// Begins with these.
    pub fn new(connectors: Connectors) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(connectors))))
    }

    /// Those of now.
    pub fn current(&self) -> Arc<Connectors> {
        // An Arc is whole at any time.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connector of a route, as it is now, by its index in the configuration.
    pub fn of_route(&self, route: Option<usize>) -> Connector {
        self.current().of_route(route).clone()
    }

    fn replace(&self, connectors: Connectors) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(connectors);
    }

    /// Follows the files for ever. Where one of them cannot be used the old trust stays, and the
    /// log says so once. `replaced` is called after each change.
    pub async fn follow(&self, config: &Config, replaced: impl Fn()) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut done) = (None, None);
        loop {
            ticks.tick().await;
            let look = config.clone();
            // Files may be on a disk that hangs.
            let Ok(marks) = spawn_blocking(move || marks(&look)).await else {
                continue;
            };
            let marks = Some(marks);
            if marks != seen {
                seen = marks;
            } else if marks != done {
                done = marks;
                if self.refresh(config).await {
                    replaced();
                }
            }
        }
    }

    /// Reads the files again; true: there are other connectors now.
    async fn refresh(&self, config: &Config) -> bool {
        let (config, current) = (config.clone(), self.current());
        let built = spawn_blocking(move || rebuild(&config, &current)).await;
        match built {
            Ok(Ok(Some(connectors))) => {
                self.replace(connectors);
                tracing::info!(
                    "the files of [tls], [ca] and routes have changed; new connections use them"
                );
                true
            }
            Ok(Ok(None)) | Err(_) => false,
            Ok(Err(error)) => {
                tracing::error!(
                    "the files of [tls], [ca] and routes have changed and cannot be used, so what was \
                     read before still counts: {error}"
                );
                false
            }
        }
    }
}

fn marks(config: &Config) -> Vec<Mark> {
    files(config).iter().map(|file| Mark::of(file)).collect()
}

/// None: the files say what they said before.
fn rebuild(config: &Config, current: &Connectors) -> Result<Option<Connectors>, String> {
    let config = config.reread().map_err(|errors| errors.to_string())?;
    let material = Material::new(&config)?;
    if material == current.material {
        return Ok(None);
    }
    Connectors::build(material).map(Some)
}
