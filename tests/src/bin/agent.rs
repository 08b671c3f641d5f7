//! The agent of the tests: makes one kind of socket call and prints what it saw.
//!
//! `agent KIND ADDRESS [ARGUMENT]`; exit code 1 and the error on standard error when the call
//! fails. It knows nothing of mantled.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt,
        sendto, setsockopt, socket, sockopt,
    },
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, address, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: agent KIND ADDRESS [ARGUMENT]");
        return ExitCode::from(2);
    };
    let address: SocketAddr = match address.parse() {
        Ok(address) => address,
        Err(error) => {
            eprintln!("{address}: {error}");
            return ExitCode::from(2);
        }
    };
    let argument = rest.first().map_or("", String::as_str);
    match act(kind, address, argument) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{kind}: {error}");
            ExitCode::from(1)
        }
    }
}

fn act(kind: &str, address: SocketAddr, argument: &str) -> io::Result<()> {
    match kind {
        // Connects in the ordinary way, says something, reads the echo, prints the peer's name.
        "echo" => exchange(TcpStream::connect(address)?, argument.as_bytes()),
        // The same, but reads without having ended its own side.
        "ask" => {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(argument.as_bytes())?;
            let mut answer = Vec::new();
            let result = stream.read_to_end(&mut answer);
            println!("{}", String::from_utf8_lossy(&answer));
            result.map(drop)
        }
        // Sends the file ARGUMENT while it copies what comes back to its output.
        "stream" => {
            let stream = TcpStream::connect(address)?;
            let mut sender = stream.try_clone()?;
            let mut file = std::fs::File::open(argument)?;
            let sending = thread::spawn(move || {
                io::copy(&mut file, &mut sender)?;
                sender.shutdown(Shutdown::Write)
            });
            io::copy(&mut &stream, &mut io::stdout().lock())?;
            sending
                .join()
                .map_err(|_| io::Error::other("the sender panicked"))?
        }
        // Connects until it is let, at most ARGUMENT milliseconds; prints how often it was refused.
        "retry" => {
            let limit = Duration::from_millis(argument.parse().map_err(io::Error::other)?);
            let begun = Instant::now();
            let mut refused = 0;
            let mut stream = loop {
                match TcpStream::connect(address) {
                    Ok(stream) => break stream,
                    Err(error)
                        if error.kind() == io::ErrorKind::ConnectionRefused
                            && begun.elapsed() < limit =>
                    {
                        refused += 1;
                        thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => return Err(error),
                }
            };
            println!("{refused} refused, {} ms", begun.elapsed().as_millis());
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])
        }
        // Connects from each port of ARGUMENT ("ADDRESS FIRST LAST"), with one byte each way;
        // prints what came back.
        "sources" => {
            let [source, first, last] = argument.split(' ').collect::<Vec<_>>()[..] else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let source: IpAddr = source.parse().map_err(io::Error::other)?;
            let number = |text: &str| text.parse::<u16>().map_err(io::Error::other);
            let mut heard = Vec::new();
            for port in number(first)?..=number(last)? {
                let stream = open(address, |socket| {
                    setsockopt(socket, sockopt::ReuseAddr, &true)?;
                    let source = SockaddrStorage::from(SocketAddr::new(source, port));
                    Ok(bind(socket.as_raw_fd(), &source)?)
                })?;
                let mut stream = TcpStream::from(stream);
                stream.write_all(b"x")?;
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                heard.extend(byte);
            }
            println!("{}", String::from_utf8_lossy(&heard));
            Ok(())
        }
        "mapped" => exchange(open(map(address), |_| Ok(()))?.into(), argument.as_bytes()),
        "bound" => {
            let (source, words) = argument.split_once(' ').unwrap_or((argument, ""));
            let source = SocketAddr::new(source.parse().map_err(io::Error::other)?, 0);
            let stream = open(address, |socket| {
                Ok(bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?)
            })?;
            exchange(stream.into(), words.as_bytes())
        }
        "device" => {
            let (device, words) = argument.split_once(' ').unwrap_or((argument, ""));
            let device = std::ffi::OsString::from(device);
            let stream = open(address, |socket| {
                Ok(setsockopt(socket, sockopt::BindToDevice, &device)?)
            })?;
            exchange(stream.into(), words.as_bytes())
        }
        "nonblocking" => exchange(nonblocking(address)?, argument.as_bytes()),
        "fastopen" => {
            // The first words travel with the SYN where the kernel has a cookie.
            let socket = stream_socket(address)?;
            sendto(
                socket.as_raw_fd(),
                argument.as_bytes(),
                &SockaddrStorage::from(address),
                MsgFlags::from_bits_retain(nix::libc::MSG_FASTOPEN),
            )?;
            finish(socket.into(), argument.len())
        }
        // Connects ARGUMENT times, one after the other, with one byte each way.
        "hammer" => {
            let count: u32 = argument.parse().map_err(io::Error::other)?;
            for _ in 0..count {
                let mut stream = TcpStream::connect(address)?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
            }
            println!("{count}");
            Ok(())
        }
        // Sends ARGUMENT datagrams, and counts those that are refused.
        "flood" => {
            let count: u32 = argument.parse().map_err(io::Error::other)?;
            let socket = datagram(address)?;
            let refused = (0..count)
                .filter(|_| socket.send_to(b"x", address).is_err())
                .count();
            println!("{refused}");
            Ok(())
        }
        // "RATE WORDS": so many connections a second, each for the words and their echo, until its
        // input ends. Prints a line for each: how many milliseconds it took, and its error.
        "load" => load(address, argument),
        // Opens ARGUMENT connections, uses each, says so, and keeps them until its input ends.
        "many" => {
            let count: usize = argument.parse().map_err(io::Error::other)?;
            let mut streams = Vec::new();
            for _ in 0..count {
                let mut stream = TcpStream::connect(address)?;
                stream.write_all(b"first")?;
                streams.push(stream);
            }
            for stream in &mut streams {
                stream.read_exact(&mut [0; 5])?;
            }
            println!("open");
            wait_for_input()?;
            for stream in &mut streams {
                stream.write_all(b"again")?;
                stream.read_exact(&mut [0; 5])?;
            }
            println!("done");
            Ok(())
        }
        // Writes as much as goes in two seconds, and never reads.
        "deaf" => {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nonblocking(true)?;
            let chunk = vec![b'x'; 65536];
            let mut written = 0_u64;
            for _ in 0..200 {
                loop {
                    match stream.write(&chunk) {
                        Ok(length) => written += length as u64,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
                thread::sleep(Duration::from_millis(10));
            }
            println!("{written}");
            wait_for_input()
        }
        // Connects and says nothing.
        "mute" => {
            let _stream = TcpStream::connect(address)?;
            println!("open");
            wait_for_input()
        }
        // One byte at a time, ARGUMENT of them, 200 ms apart.
        "slow" => {
            let count: usize = argument.parse().map_err(io::Error::other)?;
            let mut stream = TcpStream::connect(address)?;
            for _ in 0..count {
                // With this no protocol begins, so nobody waits for more of it.
                stream.write_all(b"!")?;
                stream.read_exact(&mut [0])?;
                thread::sleep(Duration::from_millis(200));
            }
            println!("{count}");
            Ok(())
        }
        // Makes a socket, waits for input, then connects it.
        "early-socket" => {
            let socket = stream_socket(address)?;
            println!("made");
            wait_for_input()?;
            connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
            exchange(socket.into(), argument.as_bytes())
        }
        // Connects, waits for input, then uses the connection.
        "early-connection" => {
            let mut stream = TcpStream::connect(address)?;
            println!("connected");
            wait_for_input()?;
            stream.write_all(argument.as_bytes())?;
            stream.read_exact(&mut [0])?;
            println!("answered");
            Ok(())
        }
        // Connects a datagram socket, waits for input, then sends.
        "early-datagram" => {
            let socket = datagram(address)?;
            socket.connect(address)?;
            println!("connected");
            wait_for_input()?;
            socket.send(argument.as_bytes())?;
            println!("sent");
            Ok(())
        }
        "datagram" => {
            datagram(address)?.send_to(argument.as_bytes(), address)?;
            println!("sent");
            Ok(())
        }
        "connected-datagram" => {
            let socket = datagram(address)?;
            socket.connect(address)?;
            socket.send(argument.as_bytes())?;
            println!("sent");
            Ok(())
        }
        // Loopback addresses, out of another device.
        "device-datagram" => {
            let socket = datagram(address)?;
            setsockopt(
                &socket,
                sockopt::BindToDevice,
                &std::ffi::OsString::from("wire"),
            )?;
            socket.send_to(argument.as_bytes(), address)?;
            println!("sent");
            Ok(())
        }
        "pktinfo-datagram" => {
            let SocketAddr::V4(v4) = address else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            let index = nix::net::if_::if_nametoindex("wire")?;
            let device = nix::libc::in_pktinfo {
                ipi_ifindex: index as i32,
                ipi_spec_dst: nix::libc::in_addr { s_addr: 0 },
                ipi_addr: nix::libc::in_addr { s_addr: 0 },
            };
            nix::sys::socket::sendmsg(
                datagram(address)?.as_raw_fd(),
                &[io::IoSlice::new(argument.as_bytes())],
                &[nix::sys::socket::ControlMessage::Ipv4PacketInfo(&device)],
                MsgFlags::empty(),
                Some(&nix::sys::socket::SockaddrIn::from(v4)),
            )?;
            println!("sent");
            Ok(())
        }
        "udplite" => {
            const IPPROTO_UDPLITE: i32 = 136;
            send_on(
                socket2::Type::DGRAM,
                IPPROTO_UDPLITE,
                address,
                argument.as_bytes(),
            )
        }
        "raw" => {
            const EXPERIMENTAL: i32 = 253; // RFC 3692
            send_on(
                socket2::Type::RAW,
                EXPERIMENTAL,
                address,
                argument.as_bytes(),
            )
        }
        "ping" => {
            // Echo request, checksum left to the kernel on such sockets.
            let mut message = vec![8, 0, 0, 0, 0, 0, 0, 1];
            message.extend_from_slice(argument.as_bytes());
            send_on(
                socket2::Type::RAW,
                nix::libc::IPPROTO_ICMP,
                address,
                &message,
            )
        }
        // Listens on the address, answers one connection with its own words.
        "serve" => {
            let listener = std::net::TcpListener::bind(address)?;
            println!("listening");
            let (mut stream, _) = listener.accept()?;
            stream.write_all(argument.as_bytes())?;
            println!("served");
            Ok(())
        }
        other => Err(io::Error::other(format!("no kind {other}"))),
    }
}

/// Keeps to its rate also while connections hang: each has a thread of its own.
fn load(address: SocketAddr, argument: &str) -> io::Result<()> {
    let (rate, words) = argument.split_once(' ').unwrap_or((argument, "words"));
    let gap = Duration::from_secs(1) / rate.parse::<u32>().map_err(io::Error::other)?;
    let input = thread::spawn(wait_for_input);
    thread::scope(|scope| {
        let mut next = Instant::now();
        while !input.is_finished() {
            scope.spawn(move || {
                let started = Instant::now();
                let result = once(address, words);
                let took = started.elapsed().as_millis();
                match result {
                    Ok(()) => println!("{took}"),
                    Err(error) => println!("{took} {error}"),
                }
            });
            next += gap;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    });
    Ok(())
}

/// One connection of a load. Whether it was refused or lost later is told apart.
fn once(address: SocketAddr, words: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)
        .map_err(|error| io::Error::other(format!("connect: {error}")))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(words.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo)?;
    if echo == words.as_bytes() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Says something, ends its side, reads until the end, and prints the peer's name and the echo.
fn exchange(mut stream: TcpStream, words: &[u8]) -> io::Result<()> {
    stream.write_all(words)?;
    finish(stream, words.len())
}

fn finish(mut stream: TcpStream, expected: usize) -> io::Result<()> {
    println!("{}", stream.peer_addr()?);
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.shutdown(Shutdown::Write)?;
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo)?;
    println!("{}", String::from_utf8_lossy(&echo));
    if echo.len() == expected {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn stream_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    Ok(socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn open(
    address: SocketAddr,
    prepare: impl FnOnce(&OwnedFd) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let socket = stream_socket(address)?;
    prepare(&socket)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

fn nonblocking(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    poll(
        &mut [PollFd::new(
            std::os::fd::AsFd::as_fd(&socket),
            PollFlags::POLLOUT,
        )],
        PollTimeout::from(10_000_u16),
    )?;
    match getsockopt(&socket, sockopt::SocketError)? {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn map(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    SocketAddrV6::new(ip, address.port(), 0, 0).into()
}

fn datagram(address: SocketAddr) -> io::Result<UdpSocket> {
    if address.is_ipv4() {
        UdpSocket::bind("0.0.0.0:0")
    } else {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
    }
}

/// Sends by a socket of any protocol number, of which nix's list has few.
fn send_on(
    kind: socket2::Type,
    protocol: i32,
    address: SocketAddr,
    words: &[u8],
) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, Some(protocol.into()))?;
    socket.send_to(words, &address.into())?;
    println!("sent");
    Ok(())
}

fn wait_for_input() -> io::Result<()> {
    io::stdin().read_to_string(&mut String::new())?;
    Ok(())
}
