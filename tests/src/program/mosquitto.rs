use std::fs;

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf};

impl Program {
    /// mosquitto with TLS on port 8883 and no other port.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn mosquitto(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("mqtt.pem"), &leaf.certificate)?;
        fs::write(lab.path("mqtt.key"), &leaf.key)?;
        let directory = lab.dir().display();
        fs::write(
            lab.path("mosquitto.conf"),
            format!(
                "user root\npersistence false\nallow_anonymous true\nlistener 8883 10.99.0.2\n\
                 certfile {directory}/mqtt.pem\nkeyfile {directory}/mqtt.key\n"
            ),
        )?;
        let mut command = lab.site.command("mosquitto");
        command.arg("-c").arg(lab.path("mosquitto.conf"));
        Self::start(lab, command, 8883)
    }
}
