//! Servers written for a test: honest ones and hostile ones, on threads in the site.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{Leaf, Namespace};

/// A listener whose every connection is given to a function, on a thread of its own.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    /// Starts one in a namespace.
    ///
    /// # Errors
    /// As bind(2).
    pub fn start(
        namespace: &Namespace,
        address: IpAddr,
        port: u16,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = namespace.enter(|| TcpListener::bind((address, port)))??;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (stop, accepted) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&accepted));
        let serve = Arc::new(serve);
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        let serve = Arc::clone(&serve);
                        let _ = stream.set_nonblocking(false);
                        let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
                        // What a hostile or refused peer does to it is not this test's matter.
                        thread::spawn(move || drop(serve(stream)));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Ok(Self {
            address,
            stop,
            accepted,
        })
    }

    /// Starts one that speaks TLS.
    ///
    /// # Errors
    /// As bind(2), or the certificate is unusable.
    pub fn start_tls(
        namespace: &Namespace,
        address: IpAddr,
        port: u16,
        leaf: &Leaf,
        serve: impl Fn(&mut StreamOwned<ServerConnection, TcpStream>) -> io::Result<()>
        + Send
        + Sync
        + 'static,
    ) -> Result<Self> {
        Self::start_upgrading(namespace, address, port, leaf, |_| Ok(()), serve)
    }

    /// Starts one that speaks TLS after a dialogue in clear.
    ///
    /// # Errors
    /// As [`Self::start_tls`].
    pub fn start_upgrading(
        namespace: &Namespace,
        address: IpAddr,
        port: u16,
        leaf: &Leaf,
        dialogue: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
        serve: impl Fn(&mut StreamOwned<ServerConnection, TcpStream>) -> io::Result<()>
        + Send
        + Sync
        + 'static,
    ) -> Result<Self> {
        let config = tls_config(leaf)?;
        Self::start(namespace, address, port, move |mut stream| {
            dialogue(&mut stream)?;
            serve_tls(&config, stream, &serve)
        })
    }

    /// Starts one that speaks TLS with those who begin with it, and in clear with all others. It
    /// sends back what it gets: who depends on the proxy to be safe is served without it as well.
    ///
    /// # Errors
    /// As [`Self::start_tls`].
    pub fn start_either(
        namespace: &Namespace,
        address: IpAddr,
        port: u16,
        leaf: &Leaf,
    ) -> Result<Self> {
        /// The first byte of a ClientHello's record.
        const HANDSHAKE: u8 = 0x16;
        let config = tls_config(leaf)?;
        Self::start(namespace, address, port, move |stream| {
            let mut first = [0];
            if stream.peek(&mut first)? == 1 && first == [HANDSHAKE] {
                serve_tls(&config, stream, &echo)
            } else {
                echo_in_clear(&stream)
            }
        })
    }

    /// Starts one without TLS that sends back what it gets, until the end of the stream.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_plain_echo(namespace: &Namespace, address: IpAddr, port: u16) -> Result<Self> {
        Self::start(namespace, address, port, |stream| echo_in_clear(&stream))
    }

    /// Starts one that speaks TLS and sends back what it gets, until the end of the stream.
    ///
    /// # Errors
    /// As [`Self::start_tls`].
    pub fn start_echo(
        namespace: &Namespace,
        address: IpAddr,
        port: u16,
        leaf: &Leaf,
    ) -> Result<Self> {
        Self::start_tls(namespace, address, port, leaf, echo)
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve_tls(
    config: &Arc<ServerConfig>,
    stream: TcpStream,
    serve: &impl Fn(&mut StreamOwned<ServerConnection, TcpStream>) -> io::Result<()>,
) -> io::Result<()> {
    let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, stream);
    let result = serve(&mut stream);
    stream.conn.send_close_notify();
    let _ = stream.flush();
    // Closing with something unread would reset the connection, and a goodbye that is
    // still on its way with it.
    let _ = stream.sock.shutdown(Shutdown::Write);
    let _ = io::copy(&mut stream.sock, &mut io::sink());
    result
}

fn echo(stream: &mut StreamOwned<ServerConnection, TcpStream>) -> io::Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn echo_in_clear(stream: &TcpStream) -> io::Result<()> {
    io::copy(&mut stream.try_clone()?, &mut &*stream)?;
    stream.shutdown(Shutdown::Both)
}

fn tls_config(leaf: &Leaf) -> Result<Arc<ServerConfig>> {
    let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(Arc::new(
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?,
    ))
}
