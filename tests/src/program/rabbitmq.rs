use std::{fs, time::Duration};

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf};

/// Erlang starts in a few seconds where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(60);

impl Program {
    /// RabbitMQ with TLS on port 5671 and no other port for clients.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn rabbitmq(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        let directory = lab.path("rabbitmq");
        fs::create_dir(&directory)?;
        fs::write(directory.join("server.pem"), &leaf.certificate)?;
        fs::write(directory.join("server.key"), &leaf.key)?;
        fs::write(directory.join("plugins"), "[].\n")?;
        let here = directory.display();
        fs::write(
            directory.join("rabbitmq.conf"),
            format!(
                "listeners.tcp = none\nlisteners.ssl.1 = 10.99.0.2:5671\n\
                 loopback_users = none\nlog.console = true\nlog.file = false\n\
                 ssl_options.certfile = {here}/server.pem\n\
                 ssl_options.keyfile = {here}/server.key\n\
                 ssl_options.verify = verify_none\n"
            ),
        )?;
        // The node starts Erlang's port mapper, which would outlive it; it all ends with the
        // namespace of its processes.
        let mut command = lab.site.command("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg("/usr/lib/rabbitmq/bin/rabbitmq-server")
            .env("HOME", &directory)
            .env("RABBITMQ_BASE", &directory)
            .env("RABBITMQ_MNESIA_BASE", directory.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", &directory)
            .env("RABBITMQ_PID_FILE", directory.join("pid"))
            .env("RABBITMQ_CONFIG_FILE", directory.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", directory.join("plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_NODENAME", "lab@localhost")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1");
        Self::start_slow(lab, command, 5671, PATIENCE)
    }
}
