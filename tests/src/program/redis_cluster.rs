use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

use super::Program;
use crate::{Lab, Leaf, eventually, run, succeed};

impl Program {
    /// A cluster of three redis-servers with TLS on these ports and no other port for clients;
    /// they speak TLS to each other as well.
    ///
    /// # Errors
    /// As [`Self::start`], or they do not find together.
    pub fn redis_cluster(lab: &Lab, leaf: &Leaf, ports: [u16; 3]) -> Result<Vec<Self>> {
        fs::write(lab.path("redis.pem"), &leaf.certificate)?;
        fs::write(lab.path("redis.key"), &leaf.key)?;
        let authority = lab.path("ca.pem");
        let start = |port: u16| {
            let directory = lab.path(&format!("redis-{port}"));
            fs::create_dir(&directory)?;
            let mut command = lab.site.command("redis-server");
            command
                .args(["--port", "0", "--tls-port", &port.to_string()])
                .args(["--tls-auth-clients", "no", "--tls-replication", "yes"])
                .args(["--cluster-enabled", "yes", "--tls-cluster", "yes"])
                .args(["--save", "", "--protected-mode", "no"])
                .args(["--bind", "10.99.0.2", "--dir"])
                .arg(directory)
                .arg("--tls-cert-file")
                .arg(lab.path("redis.pem"))
                .arg("--tls-key-file")
                .arg(lab.path("redis.key"))
                .arg("--tls-ca-cert-file")
                .arg(&authority);
            Self::start(lab, command, port)
        };
        let nodes = ports.into_iter().map(start).collect::<Result<_>>()?;
        let cli = || {
            let mut command = lab.site.command("redis-cli");
            command.arg("--tls").arg("--cacert").arg(&authority);
            command
        };
        let addresses = ports.map(|port| format!("10.99.0.2:{port}"));
        succeed(
            cli()
                .args(["--cluster", "create"])
                .args(&addresses)
                .arg("--cluster-yes"),
        )?;
        // Each node has to hear of it.
        for port in ports {
            let info = [
                "-h",
                "10.99.0.2",
                "-p",
                &port.to_string(),
                "cluster",
                "info",
            ]
            .map(str::to_owned);
            eventually("the cluster", Duration::from_secs(20), || {
                let output = run(cli().args(&info), Duration::from_secs(5)).ok()?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                said.contains("cluster_state:ok").then_some(())
            })
            .context("the nodes do not find together")?;
        }
        Ok(nodes)
    }
}
