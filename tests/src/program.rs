//! Real servers in the site: nginx, redis-server, and one file for each of the others.

mod dovecot;
mod etcd;
mod mariadb;
mod memcached;
mod mosquitto;
mod nats;
mod openssh;
mod postfix;
mod prosody;
mod python;
mod rabbitmq;
mod redis_cluster;
mod rsyslog;
mod slapd;
mod vsftpd;
mod web_application;

pub use dovecot::MAIL_PASSWORD;
pub use postfix::delivered;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Lab, Leaf, Namespace, SITE_V4, eventually};

/// A server's process; ended when it is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
}

impl Program {
    /// Starts a program in the site and waits until it accepts connections on `port`.
    ///
    /// # Errors
    /// It is not installed, or does not listen.
    pub fn start(lab: &Lab, command: Command, port: u16) -> Result<Self> {
        Self::start_in(lab, &lab.site, command, SocketAddr::new(SITE_V4, port))
    }

    /// The same for one that takes its time.
    ///
    /// # Errors
    /// As [`Self::start`].
    fn start_slow(lab: &Lab, command: Command, port: u16, patience: Duration) -> Result<Self> {
        let address = SocketAddr::new(SITE_V4, port);
        Self::start_patiently(lab, &lab.site, command, address, patience)
    }

    /// Starts a program and waits until it accepts connections on `address`.
    ///
    /// # Errors
    /// It is not installed, or does not listen.
    pub fn start_in(
        lab: &Lab,
        namespace: &Namespace,
        command: Command,
        address: SocketAddr,
    ) -> Result<Self> {
        Self::start_patiently(lab, namespace, command, address, Duration::from_secs(10))
    }

    fn start_patiently(
        lab: &Lab,
        namespace: &Namespace,
        mut command: Command,
        address: SocketAddr,
        patience: Duration,
    ) -> Result<Self> {
        let log_file = lab.path(&format!("program-{address}.log"));
        let log = fs::File::create(&log_file)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {command:?}; `cargo xtask setup` installs it"))?;
        let program = Self { child };
        namespace
            .enter(|| {
                eventually("the server to listen", patience, || {
                    TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
                })
            })?
            .with_context(|| fs::read_to_string(&log_file).unwrap_or_default())?;
        Ok(program)
    }

    /// What a server on this port has printed.
    pub fn printed(lab: &Lab, port: u16) -> String {
        let address = SocketAddr::new(SITE_V4, port);
        fs::read_to_string(lab.path(&format!("program-{address}.log"))).unwrap_or_default()
    }

    /// nginx with TLS on port 443 alone: `/` answers its protocol, `/length` the length of a
    /// posted body, `/big` sixteen megabytes.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn nginx(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("web.pem"), &leaf.certificate)?;
        fs::write(lab.path("web.key"), &leaf.key)?;
        let root = lab.path("web");
        fs::create_dir_all(&root)?;
        fs::write(root.join("big"), vec![b'b'; 16 << 20])?;
        let directory = lab.dir().display();
        fs::write(
            lab.path("nginx.conf"),
            format!(
                "daemon off; master_process off; user root; pid {directory}/nginx.pid; error_log stderr;\n\
                 events {{ worker_connections 2048; }}\n\
                 http {{\n\
                   access_log off; client_max_body_size 64m; client_body_temp_path {directory}/body;\n\
                   proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;\n\
                   uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n\
                   server {{\n\
                     listen 443 ssl http2;\n\
                     ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {directory}/web.pem; ssl_certificate_key {directory}/web.key;\n\
                     location = / {{ return 200 \"over $server_protocol for $host\\n\"; }}\n\
                     location = /length {{ client_body_in_single_buffer on; proxy_pass http://127.0.0.1:8081; proxy_http_version 1.1; }}\n\
                     location = /big {{ root {}; }}\n\
                   }}\n\
                   server {{ listen 127.0.0.1:8081; location / {{ return 200 \"$http_content_length\\n\"; }} }}\n\
                 }}\n",
                root.display()
            ),
        )?;
        let mut command = lab.site.command("nginx");
        command
            .arg("-c")
            .arg(lab.path("nginx.conf"))
            .arg("-p")
            .arg(lab.dir());
        Self::start(lab, command, 443)
    }

    /// redis-server with TLS on port 6379 and no other port.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn redis(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("redis.pem"), &leaf.certificate)?;
        fs::write(lab.path("redis.key"), &leaf.key)?;
        let mut command = lab.site.command("redis-server");
        command
            .args([
                "--port",
                "0",
                "--tls-port",
                "6379",
                "--tls-auth-clients",
                "no",
                "--save",
                "",
            ])
            .args(["--protected-mode", "no", "--bind", "10.99.0.2", "--dir"])
            .arg(lab.dir())
            .arg("--tls-cert-file")
            .arg(lab.path("redis.pem"))
            .arg("--tls-key-file")
            .arg(lab.path("redis.key"))
            .arg("--tls-ca-cert-file")
            .arg(lab.path("ca.pem"));
        Self::start(lab, command, 6379)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
