//! What the administrator of a pod's own network can build inside it.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::libc;
use socket2::Type;

use super::scene::{Family, Scene};
use super::tools::{between, check, dial, insist, open, set_number, shell, socket, tcp, udp};
use super::{Accomplice, Actor, Attack, Row, sockets};
use crate::address::{NODE_MAC, RESOLVER, link_local, mac_text};
use crate::frame::{Packet, network, protocol};

const ADMIN: Actor = Actor::Admin;
const MPTCP: i32 = 262;

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("tcp-repair", Row::Repair, ADMIN, |s| {
        let socket = tcp(s)?;
        set_number(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)?;
        socket.bind(&SocketAddr::new(s.own(), 0).into())?;
        // Established at once, without a handshake.
        socket.connect(&s.at().into())?;
        set_number(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 0)?;
        socket.set_nonblocking(true)?;
        socket.send(s.text()).map(drop)
    }),
    Attack::new("added-address", Row::ForeignAddress, ADMIN, |s| {
        let (address, length) = match s.own() {
            IpAddr::V4(_) => ("10.244.1.177", 32),
            IpAddr::V6(_) => ("fd00:244:1::177", 128),
        };
        let add = format!("ip addr add {address}/{length} dev eth0{}", nodad(s));
        between(&add, &format!("ip addr del {address}/{length} dev eth0"), || {
            let socket = udp(s)?;
            let from: IpAddr = address.parse().map_err(io::Error::other)?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
            sockets::send(&socket, s.at(), s.text())
        })
    }),
    Attack::new("changed-mac", Row::ForeignAddress, ADMIN, |s| {
        let (own, false_mac) = (mac_text(s.mac()), mac_text(s.false_mac()));
        let neighbour = format!(
            "ip neigh replace {} lladdr {} dev eth0",
            s.family.of(s.wiring.next_hop()),
            mac_text(NODE_MAC)
        );
        between(
            &format!("ip link set eth0 address {false_mac}; {neighbour}"),
            &format!("ip link set eth0 address {own}"),
            || sockets::send(&udp(s)?, s.at(), s.text()),
        )
    }),
    Attack::new("tun-forwarded", Row::Forwarded, ADMIN, tun),
    Attack::new("namespace-forwarded", Row::Forwarded, ADMIN, namespace),
    Attack::new("vxlan-device", Row::Tunnelled, ADMIN, |s| {
        let add = format!(
            "ip link add vx9 type vxlan id 9 remote {} dstport 4789 dev eth0\n\
             ip link set vx9 up\n{}",
            s.target(),
            through(s, "vx9")
        );
        between(&add, "ip link del vx9", || {
            let _ = dial(&tcp(s)?, s.gateway());
            Ok(())
        })
    }),
    Attack::new("macvlan", Row::Tunnelled, ADMIN, |s| {
        let (source, bits) = match s.own() {
            IpAddr::V4(_) => ("10.244.1.178", 32),
            IpAddr::V6(_) => ("fd00:244:1::178", 128),
        };
        // Whatever its name, the node is behind its MAC.
        let next_hop = match s.family {
            Family::V4 => s.family.of(s.wiring.next_hop()),
            Family::V6 => link_local(NODE_MAC).into(),
        };
        let add = format!(
            "ip link add mv9 link eth0 type macvlan mode bridge\n\
             ip link set mv9 up\n\
             ip addr add {source}/{bits} dev mv9{}\n\
             ip neigh replace {next_hop} lladdr {} dev mv9\n\
             ip route add {} via {next_hop} dev mv9 onlink src {source}",
            nodad(s),
            mac_text(NODE_MAC),
            s.target()
        );
        between(&add, "ip link del mv9", || sockets::send(&udp(s)?, s.at(), s.text()))
    }),
    Attack::new("segment-routing-encapsulation", Row::Tunnelled, ADMIN, |s| {
        let gateway = s.gateway().ip();
        let add = format!(
            "ip -6 route add {gateway}/128 encap seg6 mode encap segs {} dev eth0",
            s.target()
        );
        between(&add, &format!("ip -6 route del {gateway}/128"), || {
            let _ = dial(&tcp(s)?, s.gateway());
            Ok(())
        })
    })
    .not_over(Family::V4, "the kernel encapsulates in IPv6 only"),
    Attack::new("translated-inside", Row::Rewritten, ADMIN, |s| {
        let (family, gateway) = (family(s), s.gateway());
        let rules = format!(
            "nft 'table {family} adv {{ chain o {{ type nat hook output priority -100; \
             {family} daddr {} tcp dport {} dnat to {}; }}; }}'",
            gateway.ip(),
            gateway.port(),
            s.at()
        );
        between(&rules, &format!("nft delete table {family} adv"), || {
            let _ = dial(&tcp(s)?, gateway);
            Ok(())
        })
    }),
    Attack::new("rewritten-at-the-interface", Row::Rewritten, ADMIN, |s| {
        let (family, resolver) = (family(s), s.family.of(RESOLVER));
        let rules = format!(
            "nft 'table netdev adv {{ chain e {{ type filter hook egress device \"eth0\" \
             priority 0; {family} daddr {resolver} {family} daddr set {}; }}; }}'",
            s.target()
        );
        between(&rules, "nft delete table netdev adv", || {
            sockets::send(&udp(s)?, SocketAddr::new(resolver, 53), s.text())
        })
    }),
    Attack::new("mptcp-subflow", Row::Mptcp, ADMIN, |s| {
        shell("ip mptcp limits set subflows 8 add_addr_accepted 8")?;
        let socket = socket(s, Type::STREAM, Some(MPTCP))?;
        dial(&socket, SocketAddr::new(s.peer(), s.port()))?;
        let mut stream = sockets::stream(socket)?;
        sockets::write(&mut stream, b"announce")?;
        std::thread::sleep(std::time::Duration::from_millis(150));
        Ok(())
    })
    .after(Accomplice::Peer(announce)),
];

/// ` nodad` for IPv6: an address is to be used at once.
fn nodad(s: &Scene) -> &'static str {
    if s.own().is_ipv4() { "" } else { " nodad" }
}

/// The family's name in rules.
fn family(s: &Scene) -> &'static str {
    if s.own().is_ipv4() { "ip" } else { "ip6" }
}

/// A route for the gateway's address through a device, with somebody to send to.
fn through(s: &Scene, device: &str) -> String {
    let gateway = s.gateway().ip();
    format!(
        "ip route add {gateway} dev {device}\n\
         ip neigh add {gateway} lladdr 02:00:00:00:00:09 dev {device}"
    )
}

/// Rules and settings that let the pod forward in its own name.
fn forwarding(s: &Scene) -> String {
    let (family, switch) = match s.family {
        Family::V4 => ("ip", "ipv4/ip_forward"),
        Family::V6 => ("ip6", "ipv6/conf/all/forwarding"),
    };
    format!(
        "echo 1 > /proc/sys/net/{switch}\n\
         nft 'table {family} adv {{ chain p {{ type nat hook postrouting priority 100; \
         oif \"eth0\" masquerade; }}; }}'"
    )
}

/// Undoes it. Forwarding of IPv6 takes the routes that routers announced; ours are static.
fn no_forwarding(s: &Scene) -> String {
    let switch = match s.family {
        Family::V4 => "ipv4/ip_forward",
        Family::V6 => "ipv6/conf/all/forwarding",
    };
    format!("nft delete table {} adv; echo 0 > /proc/sys/net/{switch}", family(s))
}

/// Address ranges behind the pod: the router's and the client's.
fn behind(s: &Scene) -> (&'static str, &'static str, u8) {
    match s.family {
        Family::V4 => ("10.9.8.1", "10.9.8.2", 24),
        Family::V6 => ("fd09:8::1", "fd09:8::2", 64),
    }
}

fn tun(s: &Scene) -> io::Result<()> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const TUN_WITHOUT_HEADER: u16 = 0x1001;
    let tun = open("/dev/net/tun")?;
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"tun9");
    request[16..18].copy_from_slice(&TUN_WITHOUT_HEADER.to_ne_bytes());
    // SAFETY: the request is as long as the kernel's `ifreq`, and lives.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) })?;
    let (router, client, bits) = behind(s);
    let add = format!(
        "ip addr add {router}/{bits} dev tun9{}\nip link set tun9 up\n{}",
        nodad(s),
        forwarding(s)
    );
    between(&add, &no_forwarding(s), || {
        let src: IpAddr = client.parse().map_err(io::Error::other)?;
        let packet = Packet {
            src,
            dst: s.target(),
            protocol: protocol::UDP,
            src_port: 40000,
            dst_port: s.port(),
            flags: 0,
            payload: s.text(),
        };
        let packet = network(src, s.target(), protocol::UDP, &packet.transport());
        let mut tun = std::fs::File::from(tun);
        insist(|| tun.write_all(&packet))?;
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok(())
    })
}

/// MAC address of the pod's end of the pair to its inner namespace.
const OUTER: &str = "02:00:00:00:09:01";

/// A namespace inside the pod's user's own, joined to the pod by a pair of interfaces.
fn namespace(s: &Scene) -> io::Result<()> {
    let (router, client, bits) = behind(s);
    let (dad, probe, at) = (nodad(s), std::env::current_exe()?, s.at());
    // Nothing here waits for ever: what does not come is an attack that did not arrive.
    let inner = format!(
        "for i in $(seq 200); do ip link set in9 up 2>/dev/null && break; sleep 0.01; done\n\
         ip addr add {client}/{bits} dev in9{dad}\n\
         ip neigh add {router} lladdr {OUTER} dev in9\n\
         ip route add default via {router}\n\
         for i in $(seq 200); do ip link show in9 | grep -q LOWER_UP && break; sleep 0.01; done\n\
         for i in 1 2 3; do {} udp {at} >/dev/null; sleep 0.03; done",
        probe.display()
    );
    let outer = format!(
        "{}\nunshare -Un --keep-caps timeout 3 sh -ec '{inner}' & child=$!\n\
         trap 'kill $child 2>/dev/null || true; ip link del out9 2>/dev/null || true' EXIT\n\
         for i in $(seq 100); do\n\
         [ \"$(readlink /proc/$child/ns/net)\" != \"$(readlink /proc/$$/ns/net)\" ] && break\n\
         sleep 0.01\ndone\n\
         ip link add out9 address {OUTER} type veth peer name in9 netns $child\n\
         ip addr add {router}/{bits} dev out9{dad}\n\
         ip link set out9 up\nwait $child",
        forwarding(s)
    );
    between(&outer, &no_forwarding(s), || Ok(()))
}

/// Serves MPTCP at the attack's port and announces the forbidden address as another of its own.
fn announce(s: &Scene) -> io::Result<()> {
    let target = s.target();
    shell(&format!(
        "ip mptcp limits set subflows 8 add_addr_accepted 8\n\
         ip mptcp endpoint show | grep -qw {target} || ip mptcp endpoint add {target} signal"
    ))?;
    let listener = socket(s, Type::STREAM, Some(MPTCP))?;
    match listener.bind(&SocketAddr::new(s.peer(), s.port()).into()) {
        // It serves since the attack was made the last time.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(()),
        bound => bound?,
    }
    listener.listen(8)?;
    std::thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            open.push(stream);
        }
    });
    Ok(())
}
