//! Sends one thing from wherever it is started, and says what became of it as one line of JSON.
//!
//! The lab starts it inside a pod's namespace and cgroup; it knows nothing of either.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use egress_tests::adversary::run::perform;
use egress_tests::adversary::talk::talk;
use egress_tests::attempt::{Outcome, client_hello};
use egress_tests::confine::without_bpf;
use egress_tests::dial::{Way, dial, redial};
use egress_tests::frame::{Packet, SYN, protocol};
use egress_tests::sniffer::packet_address;
use egress_tests::wiring::Wiring;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Answer everything that arrives with itself; says `ready` first.
    Serve { kind: String, address: SocketAddr },
    /// Open a TCP connection; with a name, speak TLS; with a host, speak HTTP.
    Tcp {
        address: SocketAddr,
        #[arg(long)]
        sni: Option<String>,
        #[arg(long)]
        http: Option<String>,
        #[arg(long, default_value_t = 1500)]
        patience: u64,
        /// How to open it.
        #[arg(long, value_enum, default_value_t)]
        way: Way,
    },
    /// Open a TCP connection, undo it, and open another with the same socket.
    Redial { one: SocketAddr, other: SocketAddr },
    /// Open and close TCP connections as fast as it goes, for so many milliseconds; says how many
    /// were opened.
    Connects {
        address: SocketAddr,
        #[arg(long)]
        milliseconds: u64,
    },
    /// Keep connecting to the addresses that standard input names, in turn, as a client behind
    /// kube-proxy does, and exchange some bytes over each. Every line is the whole new list, comma
    /// separated, and is answered with `ok` before the next connection.
    Visit,
    /// Keep one TCP connection busy for so many milliseconds; says how many echoes came back, and
    /// fails when one does not.
    Hold {
        address: SocketAddr,
        #[arg(long)]
        milliseconds: u64,
        /// How long an echo may take.
        #[arg(long, default_value_t = 500)]
        patience: u64,
    },
    /// Send a datagram and, with --wait, wait for the answer.
    Udp {
        address: SocketAddr,
        #[arg(long)]
        wait: bool,
        /// Connect the socket first: only then is it told of errors.
        #[arg(long)]
        connected: bool,
    },
    /// Send a datagram to every port below this number.
    Scan { address: IpAddr, ports: u16 },
    /// Send an echo request and wait for the reply.
    Ping { address: IpAddr },
    /// Send a datagram through a raw socket, with an IP header of our own.
    Raw {
        address: SocketAddr,
        #[arg(long)]
        source: IpAddr,
    },
    /// Send a frame through a packet socket, below IP.
    Packet {
        address: SocketAddr,
        #[arg(long)]
        source: IpAddr,
        #[arg(long)]
        interface: String,
        #[arg(long, value_parser = mac)]
        from: [u8; 6],
        #[arg(long, value_parser = mac)]
        to: [u8; 6],
    },
    /// Send so many bytes to an echo server and have them all sent back.
    Talk {
        way: Way,
        address: SocketAddr,
        #[arg(long)]
        bytes: usize,
    },
    /// Become another program under a seccomp filter that answers bpf(2) with `EPERM`.
    WithoutBpf {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<String>,
    },
    /// Make attacks of the adversary suite, each named `id/family@host`.
    Attack {
        #[arg(long)]
        wiring: Wiring,
        names: Vec<String>,
    },
    /// Send datagrams to an address for so many milliseconds, so many a second, to as many of its
    /// ports in turn, the given one first.
    Scatter {
        address: SocketAddr,
        #[arg(long)]
        milliseconds: u64,
        #[arg(long)]
        rate: u64,
        #[arg(long, default_value_t = 1)]
        ports: u16,
    },
    /// Send by every way as fast as it goes, for so many milliseconds or until standard input ends.
    Flood {
        address: SocketAddr,
        #[arg(long)]
        source: IpAddr,
        #[arg(long)]
        interface: String,
        #[arg(long, value_parser = mac)]
        from: [u8; 6],
        #[arg(long, value_parser = mac)]
        to: [u8; 6],
        #[arg(long, required_unless_present = "while_open")]
        milliseconds: Option<u64>,
        #[arg(long)]
        while_open: bool,
    },
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> =
        text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    let bytes = bytes.map_err(|error| error.to_string())?;
    bytes.try_into().map_err(|_| "six bytes, like 0a:58:0a:f4:01:02".to_owned())
}

fn main() -> std::io::Result<()> {
    let start = Instant::now();
    let mut peer = None;
    let (result, attempts) = match Cli::parse().what {
        What::Serve { kind, address } => return serve(&kind, address),
        What::WithoutBpf { program } => return Err(without_bpf(&program)),
        What::Attack { wiring, names } => return perform(wiring, &names),
        What::Tcp { address, sni, http, patience, way } => {
            let question = match (sni, http) {
                (Some(name), _) => client_hello(&name),
                (None, Some(host)) => request(&host),
                (None, None) => Vec::new(),
            };
            let patience = Duration::from_millis(patience);
            let answer = dial(way, address, &question, patience).and_then(|stream| {
                peer = Some(stream.peer_addr()?);
                if question.is_empty() {
                    return Ok("connected".to_owned());
                }
                answer(stream, patience)
            });
            (answer, 1)
        }
        What::Redial { one, other } => {
            let patience = Duration::from_millis(1500);
            let stream = redial(one, other, patience).and_then(|stream| stream.peer_addr());
            peer = stream.as_ref().ok().copied();
            (stream.map(|_| "connected".to_owned()), 2)
        }
        What::Connects { address, milliseconds } => {
            (Ok(String::new()), connects(address, start + Duration::from_millis(milliseconds)))
        }
        What::Visit => visit()?,
        What::Hold { address, milliseconds, patience } => {
            let patience = Duration::from_millis(patience);
            hold(address, start + Duration::from_millis(milliseconds), patience)
        }
        What::Talk { way, address, bytes } => (talk(way, address, bytes), 1),
        What::Udp { address, wait, connected } => (udp(address, wait, connected), 1),
        What::Scan { address, ports } => (scan(address, ports), u64::from(ports.max(1)) - 1),
        What::Ping { address } => (ping(address), 1),
        What::Raw { address, source } => (raw(address).and_then(|raw| raw.send(source)), 1),
        What::Packet { address, source, interface, from, to } => {
            let sent = below(&interface).and_then(|socket| {
                socket.send(&datagram(source, address).ethernet(from, to)).map(drop)
            });
            (sent.map(|()| String::new()), 1)
        }
        What::Scatter { address, milliseconds, rate, ports } => {
            match scatter(address, Duration::from_millis(milliseconds), rate, ports) {
                Ok(attempts) => (Ok(String::new()), attempts),
                Err(error) => (Err(error), 0),
            }
        }
        What::Flood { address, source, interface, from, to, milliseconds, while_open } => {
            let until = milliseconds.map(|span| start + Duration::from_millis(span));
            let closed = Arc::new(AtomicBool::new(false));
            if while_open {
                // It is there to be in the way, not to take the time of what it is in the way of.
                // SAFETY: takes an integer only.
                unsafe { nix::libc::nice(10) };
                let closed = Arc::clone(&closed);
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                    closed.store(true, Ordering::Relaxed);
                });
            }
            let more = || {
                let in_time = until.is_none_or(|until| Instant::now() < until);
                in_time && !closed.load(Ordering::Relaxed)
            };
            match flood(address, source, &interface, (from, to), more) {
                Ok(attempts) => (Ok(String::new()), attempts),
                Err(error) => (Err(error), 0),
            }
        }
    };
    let outcome = Outcome { peer, ..Outcome::new(result, start.elapsed(), attempts) };
    let line = serde_json::to_string(&outcome)?;
    writeln!(std::io::stdout(), "{line}")
}

fn hold(address: SocketAddr, until: Instant, patience: Duration) -> (std::io::Result<String>, u64) {
    let mut echoes = 0;
    let mut keep = || -> std::io::Result<String> {
        let mut stream = dial(Way::default(), address, b"", patience)?;
        stream.set_read_timeout(Some(patience))?;
        while Instant::now() < until {
            stream.write_all(b"ping")?;
            stream.read_exact(&mut [0; 4])?;
            echoes += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok("held".to_owned())
    };
    (keep(), echoes)
}

fn request(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
}

/// What the other side says first.
fn answer(mut stream: TcpStream, patience: Duration) -> std::io::Result<String> {
    stream.set_read_timeout(Some(patience))?;
    let mut answer = [0u8; 512];
    let length = stream.read(&mut answer)?;
    let answer = answer.get(..length).unwrap_or_default();
    Ok(match answer {
        // A handshake record: the server's hello.
        [22, 3, ..] => "TLS".to_owned(),
        [] => return Err(std::io::ErrorKind::ConnectionReset.into()),
        text => String::from_utf8_lossy(text).lines().next().unwrap_or_default().to_owned(),
    })
}

/// Connections that were opened until then. One that is refused is tried again at once.
fn connects(address: SocketAddr, until: Instant) -> u64 {
    let mut opened = 0;
    while Instant::now() < until {
        match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            Ok(_) => opened += 1,
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    opened
}

/// Visits until standard input ends. Says how many connections were made; the first that was not
/// ends it with its error.
fn visit() -> std::io::Result<(std::io::Result<String>, u64)> {
    let (sender, lists) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let list: Vec<SocketAddr> =
                line.split(',').filter_map(|address| address.parse().ok()).collect();
            if sender.send(list).is_err() {
                return;
            }
        }
    });
    let (mut targets, mut attempts) = (Vec::new(), 0u64);
    loop {
        match lists.try_recv() {
            Ok(list) => {
                targets = list;
                writeln!(std::io::stdout(), "ok")?;
                std::io::stdout().flush()?;
            }
            Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                return Ok((Ok(format!("{attempts} connections")), attempts));
            }
            Err(std::sync::mpsc::TryRecvError::Empty) => {}
        }
        let Some(target) = targets.get(attempts as usize % targets.len().max(1)) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        if let Err(error) = exchange(*target) {
            eprintln!("{target}: {error}");
            return Ok((Err(error), attempts));
        }
        attempts += 1;
        // A client, not a flood: the machine has other things to do.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Opens a connection, says something and hears it back.
fn exchange(address: SocketAddr) -> std::io::Result<()> {
    let patience = Duration::from_secs(3);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0u8; 4])
}

fn udp(address: SocketAddr, wait: bool, connected: bool) -> std::io::Result<String> {
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    if connected {
        socket.connect(address)?;
        socket.send(b"probe")?;
    } else {
        socket.send_to(b"probe", address)?;
    }
    if !wait {
        return Ok("sent".to_owned());
    }
    socket.set_read_timeout(Some(Duration::from_millis(700)))?;
    let mut answer = [0u8; 64];
    socket.recv_from(&mut answer).map(|_| "answered".to_owned())
}

/// A refusal is what is hoped for.
fn scan(address: IpAddr, ports: u16) -> std::io::Result<String> {
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    for port in 1..ports {
        let _ = socket.send_to(b"probe", (address, port));
    }
    Ok("scanned".to_owned())
}

/// An echo request through a raw ICMP socket, and its reply.
fn ping(address: IpAddr) -> std::io::Result<String> {
    let (domain, protocol, request, reply, header) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8u8, 0u8, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129, 0),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_millis(700)))?;
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    // The checksum of a message that is zero but for type and identifier; IPv6's is the kernel's.
    let sum = !(u16::from_be_bytes([request, 0]).wrapping_add(u16::from_be_bytes([high, low])));
    let [s0, s1] = sum.to_be_bytes();
    let message = [request, 0, s0, s1, high, low, 0, 0];
    socket.send_to(&message, &SockAddr::from(SocketAddr::new(address, 0)))?;
    let until = Instant::now() + Duration::from_millis(700);
    let mut answer = [std::mem::MaybeUninit::new(0u8); 256];
    while Instant::now() < until {
        let length = socket.recv(&mut answer)?;
        // SAFETY: the array was initialised, and the kernel wrote the first `length` bytes.
        let bytes = answer.map(|byte| unsafe { byte.assume_init() });
        let message = bytes.get(header..length).unwrap_or_default();
        if let [kind, _, _, _, a, b, ..] = message
            && *kind == reply
            && [*a, *b] == [high, low]
        {
            return Ok("answered".to_owned());
        }
    }
    Err(std::io::ErrorKind::TimedOut.into())
}

/// A raw socket with an address to send to.
struct Raw {
    socket: Socket,
    address: SocketAddr,
}

fn raw(address: SocketAddr) -> std::io::Result<Raw> {
    const IPPROTO_RAW: i32 = 255;
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(IPPROTO_RAW)))?;
    Ok(Raw { socket, address })
}

impl Raw {
    fn send(&self, source: IpAddr) -> std::io::Result<String> {
        let packet = datagram(source, self.address).ip();
        // The header has the port; the kernel wants none.
        let to = SocketAddr::new(self.address.ip(), 0);
        self.socket.send_to(&packet, &SockAddr::from(to)).map(|_| "sent".to_owned())
    }
}

fn below(interface: &str) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    let address = packet_address(interface).map_err(std::io::Error::other)?;
    socket.bind(&address)?;
    Ok(socket)
}

fn datagram(source: IpAddr, address: SocketAddr) -> Packet<'static> {
    Packet {
        src: source,
        dst: address.ip(),
        protocol: protocol::UDP,
        src_port: 40000,
        dst_port: address.port(),
        flags: 0,
        payload: b"probe",
    }
}

/// A refused datagram counts as sent: somebody counted it.
fn scatter(address: SocketAddr, time: Duration, rate: u64, ports: u16) -> std::io::Result<u64> {
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        let due = u64::try_from(start.elapsed().as_micros()).unwrap_or(0) * rate / 1_000_000;
        if sent >= due {
            std::thread::sleep(Duration::from_micros(200));
        }
        while sent < due {
            let port = address.port() + u16::try_from(sent % u64::from(ports)).unwrap_or(0);
            let _ = socket.send_to(b"probe", (address.ip(), port));
            sent += 1;
        }
    }
    Ok(sent)
}

/// Every way at once: the frames count as sent whether or not the kernel refuses them.
fn flood(
    address: SocketAddr,
    source: IpAddr,
    interface: &str,
    (from, to): ([u8; 6], [u8; 6]),
    more: impl Fn() -> bool,
) -> std::io::Result<u64> {
    let below = below(interface)?;
    let raw = raw(address)?;
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    let frame = datagram(source, address).ethernet(from, to);
    let syn =
        Packet { protocol: protocol::TCP, flags: SYN, payload: b"", ..datagram(source, address) };
    let syn = syn.ethernet(from, to);
    let peer = SockAddr::from(address);
    let mut attempts = 0;
    while more() {
        // A fresh socket each time: one that was refused would not be asked about again.
        let stream = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        stream.set_nonblocking(true)?;
        let _ = stream.connect(&peer);
        attempts += 1;
        for _ in 0..16 {
            // A refusal is what is hoped for.
            let _ = below.send(&frame);
            let _ = below.send(&syn);
            let _ = raw.send(source);
            let _ = socket.send_to(b"probe", address);
            attempts += 4;
        }
    }
    Ok(attempts)
}

fn serve(kind: &str, address: SocketAddr) -> std::io::Result<()> {
    let ready = || writeln!(std::io::stdout(), "ready");
    if kind == "udp" {
        let socket = UdpSocket::bind(address)?;
        ready()?;
        let mut buffer = [0u8; 2048];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer)?;
            // Whoever asked may be gone.
            let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), peer);
        }
    }
    let listener = TcpListener::bind(address)?;
    ready()?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || {
            let Ok(mut other) = stream.try_clone() else { return };
            let _ = std::io::copy(&mut other, &mut stream);
        });
    }
    Ok(())
}
