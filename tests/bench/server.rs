//! A small rustls server for what Debian's OpenSSL cannot do: post-quantum key exchange, and next
//! to it the same server without. `bench server AUTHORITY-SIGNED-CERTIFICATE KEY`.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use mantled_tests::{Lab, SITE_V4};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::{
        SupportedKxGroup,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    process::Service,
    site::{FACTS, HYBRID_FACTS, Port, this},
};

/// Threads for each port; as many connections are served at once.
const THREADS: usize = 16;

/// Starts it in the site.
pub(crate) fn start(lab: &Lab, log: &Path) -> Result<Service> {
    let [certificate, key] =
        ["site.crt", "site.key"].map(|name| lab.path(name).to_string_lossy().into_owned());
    Service::start(&lab.site, this()?, &["server", &certificate, &key], log)
}

/// `bench server ...`
pub(crate) fn main(words: &[&str]) -> Result<()> {
    let [certificate, key] = words else {
        bail!("usage: bench server CERTIFICATE KEY")
    };
    for (port, group, facts) in [
        (Port::Classic, kx_group::X25519, FACTS),
        (Port::Hybrid, kx_group::X25519MLKEM768, HYBRID_FACTS),
    ] {
        let config = config(certificate, key, group)?;
        let listener = TcpListener::bind((SITE_V4, port.number()))?;
        for _ in 0..THREADS {
            let (listener, config) = (listener.try_clone()?, Arc::clone(&config));
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // What becomes of a connection its client tells.
                    let _ = serve(stream, &config, facts);
                }
            });
        }
    }
    loop {
        thread::park();
    }
}

fn config(
    certificate: &str,
    key: &str,
    group: &'static dyn SupportedKxGroup,
) -> Result<Arc<ServerConfig>> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![group];
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_256_GCM_SHA384];
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(certificate)?],
            PrivateKeyDer::from_pem_file(key)?,
        )?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Answers every request with what the port is.
fn serve(stream: TcpStream, config: &Arc<ServerConfig>, facts: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, stream);
    let body = format!("{facts} .\n");
    let reply = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut buffer = [0; 4096];
    // A request of the load generator is one write.
    while stream.read(&mut buffer)? > 0 {
        stream.write_all(reply.as_bytes())?;
    }
    Ok(())
}
