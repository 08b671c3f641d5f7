//! The load generator: one blocking HTTP client for every path, which speaks TLS only where the
//! path is to have none of its own. It runs as a process of its own, `bench client`, inside the
//! enrolled group or outside, and prints one line of JSON.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use mantled_tests::run;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs::{self, kx_group},
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};

use crate::process::cpu_seconds;

/// Threads that make new connections.
const THREADS: usize = 4;

/// Whom to call, and how.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) address: SocketAddr,
    /// The client's own TLS.
    pub(crate) tls: Option<Tls>,
}

/// How a client that speaks TLS itself verifies the server.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// PEM file.
    pub(crate) authority: PathBuf,
    pub(crate) name: String,
    /// Offer X25519MLKEM768, and X25519 only if the server does not want that.
    pub(crate) hybrid: bool,
}

impl Call {
    /// Completes the command of a client with a kind of load and its amount.
    pub(crate) fn command(&self, mut command: Command, kind: &str, count: usize) -> Command {
        command.args([
            "client",
            kind,
            &self.address.to_string(),
            &count.to_string(),
        ]);
        if let Some(tls) = &self.tls {
            command
                .arg(&tls.authority)
                .args([&tls.name, &tls.hybrid.to_string()]);
        }
        command
    }

    /// One small request.
    pub(crate) fn check(&self, command: Command) -> Command {
        self.command(command, "check", 1)
    }

    /// Puts a load on the path and returns what the client has measured.
    pub(crate) fn load(&self, command: Command, kind: &str, count: usize) -> Result<Value> {
        let mut command = self.command(command, kind, count);
        let output = run(&mut command, Duration::from_secs(180))?;
        if !output.status.success() {
            bail!(
                "client {kind}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("client {kind}"))
    }

    fn parse<'a>(words: &[&'a str]) -> Result<(&'a str, usize, Self)> {
        let (kind, address, count, tls) = match words {
            [kind, address, count] => (kind, address, count, None),
            [kind, address, count, authority, name, hybrid] => {
                let (authority, name) = (PathBuf::from(authority), (*name).to_owned());
                (
                    kind,
                    address,
                    count,
                    Some(Tls {
                        authority,
                        name,
                        hybrid: hybrid.parse()?,
                    }),
                )
            }
            _ => bail!("usage: bench client KIND ADDRESS COUNT [AUTHORITY NAME HYBRID]"),
        };
        Ok((
            kind,
            count.parse()?,
            Self {
                address: address.parse()?,
                tls,
            },
        ))
    }
}

/// `bench client ...`
pub(crate) fn main(words: &[&str]) -> Result<()> {
    let (kind, count, call) = Call::parse(words)?;
    let dialer = Dialer::new(&call)?;
    let mut result = match kind {
        "check" => json!({ "said": dialer.dial()?.small()? }),
        "bulk" => bulk(&dialer, count)?,
        "small" => small(&dialer, count)?,
        "connections" => connections(&dialer, Duration::from_millis(count as u64))?,
        "idle" => idle(&dialer, count)?,
        _ => bail!("there is no load of kind {kind}"),
    };
    result["cpu"] = cpu_seconds(std::process::id())?.into();
    println!("{result}");
    Ok(())
}

/// The large file, `count` times on one connection.
fn bulk(dialer: &Dialer, count: usize) -> Result<Value> {
    let mut connection = dialer.dial()?;
    connection.small()?;
    let start = Instant::now();
    for _ in 0..count {
        let reply = connection.get("/bulk")?;
        ensure!(
            reply.length == crate::site::BULK,
            "the file came with {} bytes",
            reply.length
        );
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({ "bytes": crate::site::BULK * count as u64, "seconds": seconds }))
}

/// Small requests, one after the other on one connection. The first tenth does not count.
fn small(dialer: &Dialer, count: usize) -> Result<Value> {
    let mut connection = dialer.dial()?;
    for _ in 0..count / 10 {
        connection.small()?;
    }
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        connection.small()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let microseconds = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times.get(index).map(|time| time.as_secs_f64() * 1e6)
    };
    Ok(
        json!({ "requests": count + count / 10, "p50": microseconds(0.5), "p99": microseconds(0.99) }),
    )
}

/// Connections with one small request each, as many as can be made in that time.
fn connections(dialer: &Dialer, time: Duration) -> Result<Value> {
    let start = Instant::now();
    let threads: Vec<Result<(u64, u64)>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let (mut made, mut resumed) = (0, 0);
                    while start.elapsed() < time {
                        let mut connection = dialer.dial()?;
                        resumed += u64::from(connection.small()?.ends_with(" r"));
                        connection.close()?;
                        made += 1;
                    }
                    Ok((made, resumed))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
            .collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let (mut made, mut resumed) = (0, 0);
    for thread in threads {
        let (more, more_resumed) = thread?;
        made += more;
        resumed += more_resumed;
    }
    Ok(json!({ "connections": made, "resumed": resumed, "seconds": seconds }))
}

/// Opens that many connections with one request each, says so, and holds them until standard
/// input ends. Then all of them must still work.
fn idle(dialer: &Dialer, count: usize) -> Result<Value> {
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = dialer.dial()?;
        connection.small()?;
        open.push(connection);
    }
    println!("open");
    io::stdout().flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    for connection in &mut open {
        connection.small().context("a session that was idle")?;
    }
    Ok(json!({ "sessions": count }))
}

/// Makes connections.
struct Dialer {
    address: SocketAddr,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Dialer {
    fn new(call: &Call) -> Result<Self> {
        let Some(tls) = &call.tls else {
            return Ok(Self {
                address: call.address,
                tls: None,
            });
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&tls.authority)?)?;
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = if tls.hybrid {
            vec![kx_group::X25519MLKEM768, kx_group::X25519]
        } else {
            vec![kx_group::X25519]
        };
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(tls.name.clone())?;
        Ok(Self {
            address: call.address,
            tls: Some((Arc::new(config), name)),
        })
    }

    fn dial(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some((config, name)) => {
                let session = ClientConnection::new(Arc::clone(config), name.clone())?;
                Stream::Tls(Box::new(StreamOwned::new(session, stream)))
            }
        };
        Ok(Connection {
            stream,
            buffer: Vec::new(),
        })
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

struct Connection {
    stream: Stream,
    /// Sized by the largest reply: a thousand idle connections of the client are small.
    buffer: Vec<u8>,
}

struct Reply {
    length: u64,
    /// What of the body came with the head.
    start: String,
}

impl Connection {
    /// The small request; what the server says of the connection.
    fn small(&mut self) -> Result<String> {
        let mut reply = self.get("/small")?;
        ensure!(
            reply.start.len() as u64 == reply.length,
            "the small reply came in pieces"
        );
        reply.start.truncate(reply.start.trim_end().len());
        Ok(reply.start)
    }

    /// One request; the reply is read to its end.
    fn get(&mut self, path: &str) -> Result<Reply> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: site.test\r\n\r\n");
        self.stream.write_all(request.as_bytes())?;
        self.buffer.resize(self.buffer.len().max(1024), 0);
        let mut filled = 0;
        let body = loop {
            let space = self.buffer.get_mut(filled..).unwrap_or_default();
            match self.stream.read(space)? {
                0 => bail!("the connection ended before the head of the reply"),
                read => filled += read,
            }
            let head = self.buffer.get(..filled).unwrap_or_default();
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let (head, start) = self.buffer.get(..filled).unwrap_or_default().split_at(body);
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        ensure!(
            head.starts_with("http/1.1 200 "),
            "the server replied {:?}",
            head.lines().next()
        );
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .context("a reply without content-length")?
            .trim()
            .parse()?;
        let reply = Reply {
            length,
            start: String::from_utf8_lossy(start).into_owned(),
        };
        let mut rest = length
            .checked_sub(start.len() as u64)
            .context("more than the reply came")?;
        if rest > 0 {
            self.buffer.resize(256 << 10, 0);
        }
        while rest > 0 {
            match self.stream.read(&mut self.buffer)? {
                0 => bail!("the connection ended with {rest} bytes to come"),
                read => {
                    rest = rest
                        .checked_sub(read as u64)
                        .context("more than the reply came")?
                }
            }
        }
        Ok(reply)
    }

    /// Ends it in order, as a client that is done does.
    fn close(mut self) -> Result<()> {
        if let Stream::Tls(stream) = &mut self.stream {
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        Ok(())
    }
}
