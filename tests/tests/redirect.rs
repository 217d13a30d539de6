//! Connections that a policy redirects: made by applications that know of no gateway, judged by
//! the sniffer outside and by the gateway's own kernel.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::CgroupSockAddr;
use egress_tests::address::{STRIPE, pod};
use egress_tests::agent::{self, Agent};
use egress_tests::dial::Way;
use egress_tests::lab::{GATEWAY, Identity, Lab, PROXY, Pod};
use egress_tests::manifests;
use egress_tests::mesh::{Mesh, PLAIN_HOST, TLS_HOST};
use egress_tests::process::{Place, Process, wait_until};
use egress_tests::scenario::{Scenario, to};
use nix::libc;

const REDIRECT: &str = "redirect: {ports: [{port: 443}, {port: 80, gatewayPort: 8080}]}";
const REDIRECTS: [&str; 2] = ["egress_pod_redirects_total{", "source_pod=\"cart\""];
const CART_DROPS: [&str; 3] =
    ["egress_pod_connections_total{", "source_pod=\"cart\"", "verdict=\"drop\""];

/// The demo's cluster, whose policy redirects 443 and 80.
fn redirecting(mode: &str) -> Result<Scenario> {
    changed(mode, |_| Ok(()))
}

/// The same with another change before the agent starts.
fn changed(mode: &str, change: impl FnOnce(&Lab) -> Result<()>) -> Result<Scenario> {
    let lab = Lab::new()?;
    manifests::write(&lab.file("registry"), mode)?;
    edit(&lab, "policy.yaml", "  mode:", &format!("  {REDIRECT}\n  mode:"))?;
    change(&lab)?;
    let agent = Agent::start(&lab, &[])?;
    agent::wait_for_mode(&lab, mode)?;
    Ok(Scenario { agent, lab })
}

fn edit(lab: &Lab, file: &str, from: &str, to: &str) -> Result<()> {
    let path = lab.file("registry").join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {file}"))?;
    ensure!(text.contains(from), "{file} has no {from:?}");
    manifests::replace(&path, &text.replace(from, to))
}

/// Connections that the kernel of a pod's namespace has accepted.
fn accepted(pod: &Pod) -> Result<u64> {
    pod.netns.run(|| {
        let table = fs::read_to_string("/proc/thread-self/net/snmp").context("read snmp")?;
        let mut rows = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = rows.next().zip(rows.next()).context("snmp has no TCP")?;
        let at = names.split(' ').position(|name| name == "PassiveOpens");
        let value = at.and_then(|at| values.split(' ').nth(at)).context("no PassiveOpens")?;
        value.parse().context("read PassiveOpens")
    })
}

/// Runs curl as the application of a pod and gives its exit code and output.
fn curl(lab: &Lab, place: &Place<'_>, host: &str, ip: IpAddr, url: &str) -> Result<(bool, String)> {
    let ip = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    let mut command = place.command("curl").context("Debian package curl")?;
    command.args(["--silent", "--show-error", "--max-time", "5", "--write-out", "%{http_code}"]);
    command.arg("--cacert").arg(lab.file("certificate.pem"));
    for port in [443, 80] {
        command.args(["--resolve", &format!("{host}:{port}:{ip}")]);
    }
    command.arg(url).stdout(Stdio::piped()).stderr(lab.log("curl")?);
    let (status, text) = Process::start(command, "curl")?.output(Duration::from_secs(10))?;
    let said = fs::read_to_string(lab.file("log/curl")).unwrap_or_default();
    Ok((status.success(), format!("{text}{said}")))
}

#[test]
fn an_unchanged_application_reaches_the_upstream_through_the_gateway() -> Result<()> {
    let scenario = redirecting("enforce")?;
    let lab = &scenario.lab;
    let _mesh = Mesh::start(lab)?;
    let before = scenario.samples()?;
    let mut connections = 0.0;
    for (host, url) in
        [(TLS_HOST, format!("https://{TLS_HOST}/")), (PLAIN_HOST, format!("http://{PLAIN_HOST}/"))]
    {
        for ip in STRIPE.both() {
            let mark = lab.sniffer.mark();
            let (ok, text) = curl(lab, &lab.cart.place(), host, ip, &url)?;
            assert!(ok && text == "upstream over TLS\n200", "{url} at {ip}: {text}");
            lab.settle();
            let own = lab.sniffer.escapes(mark)?;
            assert!(own.is_empty(), "{url} at {ip}: {own:?}");
            let from = |frame: &egress_tests::frame::Frame| {
                pod(GATEWAY.host).has(frame.src) && STRIPE.has(frame.dst)
            };
            let gateways = lab.sniffer.matching(mark, from)?;
            assert!(!gateways.is_empty(), "{url} at {ip} did not come from the gateway");
            connections += 1.0;
        }
    }
    let after = scenario.samples()?;
    let rise = |parts: &[&str]| agent::sum(&after, parts) - agent::sum(&before, parts);
    assert_eq!(rise(&REDIRECTS), connections);
    let gateway = ["egress_pod_connections_total{", "source_pod=\"cart\"", "reason=\"gateway\""];
    assert_eq!(rise(&gateway), connections);
    assert_eq!(rise(&CART_DROPS), 0.0, "a redirected connection is no bypass");
    let events = fs::read_to_string(lab.file("events")).unwrap_or_default();
    assert!(!events.contains("cart"), "{events}");
    Ok(())
}

#[test]
fn every_way_of_dialling_goes_to_the_gateway_and_is_told_the_peer_it_asked_for() -> Result<()> {
    let scenario = redirecting("enforce")?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let mapped = IpAddr::V6(STRIPE.v4.to_ipv6_mapped());
    for way in Way::ALL {
        for ip in STRIPE.both().into_iter().chain([mapped]) {
            let before = accepted(&lab.gateway)?;
            let asked = SocketAddr::new(ip, 443);
            let text = asked.to_string();
            let arguments = ["tcp", &text, "--sni", TLS_HOST, "--way", way.name()];
            let (outcome, escaped) = scenario.judged(&lab.cart.place(), &arguments)?;
            let what = format!("{} to {ip}", way.name());
            // The gateway here answers with what it is sent: a TLS hello.
            assert!(outcome.ok && outcome.answer == "TLS", "{what}: {outcome:?}");
            assert_eq!((escaped, accepted(&lab.gateway)? - before), (0, 1), "{what}");
            // An MPTCP socket is told the peer of the subflow below it, which is another socket.
            let told = if way == Way::Mptcp { outcome.peer.map(|_| asked) } else { outcome.peer };
            assert_eq!(told, Some(asked), "{what}");
        }
    }
    Ok(())
}

#[test]
fn a_socket_that_dials_again_is_told_its_new_peer() -> Result<()> {
    let scenario = redirecting("enforce")?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    for (outside, gateway) in STRIPE.both().into_iter().zip(pod(GATEWAY.host).both()) {
        let (outside, gateway) = (to(outside, 443), to(gateway, 8443));
        for (one, other) in [(&outside, &gateway), (&gateway, &outside)] {
            let outcome = lab.attempt(&lab.cart.place(), &["redial", one, other])?;
            assert_eq!(
                outcome.peer.map(|peer| peer.to_string()).as_ref(),
                Some(other),
                "{outcome:?}"
            );
        }
    }
    Ok(())
}

/// A second pod of the gateway.
const SECOND: Identity = Identity {
    short: "gateway2",
    name: "istio-system/istio-egressgateway-7d9c6b5f4-second",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000011",
    host: 11,
};

/// The second pod's objects.
fn second(serving: bool) -> String {
    let ip = pod(SECOND.host).v4;
    let (_, name) = SECOND.name.split_once('/').unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: istio-system, uid: {uid}, \
           labels: {{app: istio-egressgateway, istio: egressgateway}}}}\n\
         spec: {{nodeName: node-a, serviceAccountName: istio-egressgateway-service-account, \
           containers: [{{name: istio-proxy, image: istio/proxyv2}}]}}\n\
         status: {{phase: Running, podIPs: [{{ip: {ip}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: istio-egressgateway-second, namespace: istio-system, \
           labels: {{kubernetes.io/service-name: istio-egressgateway}}}}\n\
         addressType: IPv4\n\
         ports: [{{name: https, port: 8443, protocol: TCP}}]\n\
         endpoints: [{{addresses: [{ip}], conditions: {{serving: {serving}}}, \
           targetRef: {{kind: Pod, name: {name}, namespace: istio-system, uid: {uid}}}}}]\n",
        uid = SECOND.uid,
    )
}

#[test]
fn connections_are_spread_over_the_endpoints_that_are_not_draining() -> Result<()> {
    const CONNECTIONS: u64 = 40;
    let scenario = redirecting("enforce")?;
    let lab = &scenario.lab;
    let other = lab.add_pod(SECOND)?;
    let _servers = [
        scenario.server(&lab.gateway.place(), "tcp", 8443)?,
        scenario.server(&other.place(), "tcp", 8443)?,
    ];
    let shares = |scenario: &Scenario| -> Result<(u64, u64)> {
        let before = (accepted(&lab.gateway)?, accepted(&other)?);
        for _ in 0..CONNECTIONS {
            let dialled = scenario.lab.attempt(&lab.cart.place(), &["tcp", &to(STRIPE.v4, 443)])?;
            ensure!(dialled.ok, "{dialled:?}");
        }
        Ok((accepted(&lab.gateway)? - before.0, accepted(&other)? - before.1))
    };
    let path = lab.file("registry/second.yaml");
    let draining = |word: bool| {
        scenario.until("the second endpoint is known as it is", |status| {
            let endpoints = status["gateways"][0]["endpoints"].as_array();
            let ip = pod(SECOND.host).v4.to_string();
            let known = |endpoint: &&serde_json::Value| endpoint["ip"] == ip.as_str();
            endpoints.into_iter().flatten().find(known).is_some_and(|e| e["draining"] == word)
        })
    };
    manifests::replace(&path, &second(true))?;
    draining(false)?;
    let (first, second_share) = shares(&scenario)?;
    println!("{first} and {second_share} of {CONNECTIONS}");
    assert_eq!(first + second_share, CONNECTIONS);
    assert!(first >= CONNECTIONS / 5 && second_share >= CONNECTIONS / 5, "{first} {second_share}");
    manifests::replace(&path, &second(false))?;
    draining(true)?;
    assert_eq!(shares(&scenario)?, (CONNECTIONS, 0));
    drop(other);
    Ok(())
}

#[test]
fn audit_reports_what_enforce_would_redirect_and_rewrites_nothing() -> Result<()> {
    let scenario = redirecting("audit")?;
    let lab = &scenario.lab;
    let internet = Place { netns: Some(&lab.internet), ..Place::default() };
    let _upstream = scenario.server(&internet, "tcp", 443)?;
    let before = scenario.samples()?;
    let asked = to(STRIPE.v4, 443);
    let (outcome, escaped) = scenario.judged(&lab.cart.place(), &["tcp", &asked])?;
    assert!(outcome.ok && escaped > 0, "{outcome:?}, {escaped} frames");
    assert_eq!(scenario.rise(&before, &REDIRECTS)?, 0.0);
    let audited = ["egress_pod_connections_total{", "verdict=\"audit\"", "reason=\"not_gateway\""];
    assert_eq!(scenario.rise(&before, &audited)?, 1.0);
    let (_, text) = agent::command(lab, &["explain", "shop/cart", &asked])?;
    assert!(
        text.starts_with("AUDIT") && text.contains("in mode enforce it is redirected"),
        "{text}"
    );
    Ok(())
}

#[test]
fn what_is_not_a_listed_tcp_port_is_refused_as_before() -> Result<()> {
    let scenario = redirecting("enforce")?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    for ip in STRIPE.both() {
        for arguments in [
            vec!["udp".to_owned(), to(ip, 443), "--wait".to_owned()],
            vec!["udp".to_owned(), to(ip, 443), "--connected".to_owned()],
            vec!["tcp".to_owned(), to(ip, 9000)],
        ] {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let before = scenario.samples()?;
            let (outcome, escaped) = scenario.judged(&lab.cart.place(), &arguments)?;
            assert!(outcome.refused() && escaped == 0, "{arguments:?}: {outcome:?}");
            let drops = [&CART_DROPS[..], &["reason=\"not_gateway\""]].concat();
            assert_eq!(scenario.rise(&before, &drops)?, 1.0, "{arguments:?}");
        }
    }
    // What comes past the socket calls meets the boundary, and that rewrites nothing.
    let raw = lab.by_hand("packet", &lab.cart, SocketAddr::from((STRIPE.v4, 443)));
    let raw: Vec<&str> = raw.iter().map(String::as_str).collect();
    let (_, escaped) = scenario.judged(&lab.cart.place(), &raw)?;
    assert_eq!(escaped, 0);
    Ok(())
}

#[test]
fn without_an_endpoint_of_its_family_a_connection_is_refused_and_says_why() -> Result<()> {
    let scenario = changed("enforce", |lab| {
        let serving = "addressType: IPv6";
        edit(lab, "cluster.yaml", serving, serving)?;
        // The only IPv6 endpoint drains; the text below it is that slice's own.
        let path = lab.file("registry/cluster.yaml");
        let text = fs::read_to_string(&path)?;
        let (head, tail) = text.split_once(serving).context("no IPv6 slice")?;
        let tail = tail.replacen("serving: true", "serving: false", 1);
        manifests::replace(&path, &format!("{head}{serving}{tail}"))
    })?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let before = scenario.samples()?;
    let asked = to(STRIPE.v6, 443);
    let (outcome, escaped) = scenario.judged(&lab.cart.place(), &["tcp", &asked])?;
    assert!(outcome.refused() && escaped == 0, "{outcome:?}");
    let drops = [&CART_DROPS[..], &["reason=\"redirect_unavailable\""]].concat();
    assert_eq!(scenario.rise(&before, &drops)?, 1.0);
    let (_, text) = agent::command(lab, &["explain", "shop/cart", &asked])?;
    assert!(text.starts_with("DROP") && text.contains("redirect_unavailable"), "{text}");
    let (other, _) = scenario.judged(&lab.cart.place(), &["tcp", &to(STRIPE.v4, 443)])?;
    assert!(other.ok, "{other:?}");
    Ok(())
}

#[test]
fn the_rate_toward_gateways_holds_for_redirected_connections() -> Result<()> {
    let limit = "  rateLimit: {connectionsPerSecond: 1, burst: 2}\n  mode:";
    let scenario = changed("enforce", |lab| edit(lab, "policy.yaml", "  mode:", limit))?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let before = scenario.samples()?;
    let dial = || lab.attempt(&lab.cart.place(), &["tcp", &to(STRIPE.v4, 443)]);
    let outcomes = [dial()?, dial()?, dial()?];
    assert!(outcomes[0].ok && outcomes[1].ok && outcomes[2].refused(), "{outcomes:?}");
    let limited = [&CART_DROPS[..], &["reason=\"rate_limited\""]].concat();
    assert_eq!(scenario.rise(&before, &limited)?, 1.0);
    Ok(())
}

#[test]
fn a_captured_pods_connections_are_its_proxys() -> Result<()> {
    let scenario = redirecting("enforce")?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let before = accepted(&lab.gateway)?;
    let asked = to(STRIPE.v4, 443);
    let proxy = Place { user: Some(PROXY), ..lab.checkout.place() };
    let (refused, escaped) = scenario.judged(&proxy, &["tcp", &asked])?;
    assert!(refused.refused() && escaped == 0, "{refused:?}");
    let app = Place { user: Some((1000, 1000)), ..lab.checkout.place() };
    let (dialled, escaped) = scenario.judged(&app, &["tcp", &asked, "--patience", "600"])?;
    assert!(!dialled.ok && !dialled.refused() && escaped == 0, "{dialled:?}");
    assert_eq!(accepted(&lab.gateway)?, before);
    Ok(())
}

#[test]
fn explain_and_status_say_where_a_connection_goes() -> Result<()> {
    let scenario = redirecting("enforce")?;
    let lab = &scenario.lab;
    for (ip, port, gateway_port) in [(STRIPE.both()[0], 443, 8443), (STRIPE.both()[1], 80, 8080)] {
        let (code, text) = agent::command(lab, &["explain", "shop/cart", &to(ip, port)])?;
        assert!(code == 0 && text.starts_with("ALLOW"), "{text}");
        let via = format!(
            "redirected to gateway istio-system/istio-egressgateway via port {gateway_port}"
        );
        assert!(text.contains(&via) && text.contains("line 17"), "{text}");
    }
    let hooks = agent::status(lab)?;
    let attached = |name: &str| {
        let hooks = hooks["hooks"].as_array();
        hooks.into_iter().flatten().any(|hook| hook["hook"] == name && hook["attached"] == true)
    };
    assert!(attached("getpeername4") && attached("getpeername6"), "{hooks}");
    Ok(())
}

#[test]
fn redirection_outlives_the_agent_and_its_restart() -> Result<()> {
    let mut scenario = redirecting("enforce")?;
    let _gateway = scenario.server(&scenario.lab.gateway.place(), "tcp", 8443)?;
    let asked = SocketAddr::from((STRIPE.v4, 443));
    let dial = |lab: &Lab| lab.attempt(&lab.cart.place(), &["tcp", &asked.to_string()]);
    scenario.agent.process.kill();
    let alone = dial(&scenario.lab)?;
    assert!(alone.ok && alone.peer == Some(asked), "{alone:?}");
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    let after = dial(&scenario.lab)?;
    assert!(after.ok && after.peer == Some(asked), "{after:?}");
    // A policy that no longer redirects refuses again.
    scenario.edit("policy.yaml", &format!("  {REDIRECT}\n"), "")?;
    wait_until("connections are refused again", Duration::from_secs(5), || {
        Ok(dial(&scenario.lab)?.refused())
    })?;
    Ok(())
}

/// Attaches for `getpeername` of IPv6 as nobody should any more, without sharing the hook: the
/// kernel then lets nobody attach below.
fn hold_alone(program: &CgroupSockAddr, cgroup: &Path) -> Result<()> {
    #[repr(C)]
    struct Attr {
        cgroup: i32,
        program: i32,
        attach: u32,
        flags: u32,
    }
    const BPF_PROG_ATTACH: i64 = 8;
    const BPF_CGROUP_INET6_GETPEERNAME: u32 = 30;
    let directory = fs::File::open(cgroup).context("open the cgroup")?;
    let attr = Attr {
        cgroup: directory.as_raw_fd(),
        program: program.fd()?.as_fd().as_raw_fd(),
        attach: BPF_CGROUP_INET6_GETPEERNAME,
        flags: 0,
    };
    let size = size_of::<Attr>();
    // SAFETY: the command reads a prefix of `union bpf_attr` of the size given.
    let returned = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size) };
    ensure!(returned == 0, "BPF_PROG_ATTACH: {}", std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn where_another_program_holds_the_hook_connections_are_refused_as_before() -> Result<()> {
    let mut ebpf = aya::EbpfLoader::new().load(egress_agent::datapath::object())?;
    let theirs = ebpf.program_mut("getpeername6").context("no program getpeername6")?;
    let theirs: &mut CgroupSockAddr = theirs.try_into()?;
    theirs.load()?;
    let scenario = changed("enforce", |lab| hold_alone(theirs, lab.cgroups.path()))?;
    let lab = &scenario.lab;
    let before = scenario.samples()?;
    let (outcome, escaped) = scenario.judged(&lab.cart.place(), &["tcp", &to(STRIPE.v4, 443)])?;
    assert!(outcome.refused() && escaped == 0, "{outcome:?}");
    let drops = [&CART_DROPS[..], &["reason=\"not_gateway\""]].concat();
    assert_eq!(scenario.rise(&before, &drops)?, 1.0);
    let status = agent::status(lab)?;
    let problem = |problem: &&serde_json::Value| problem["code"] == "redirect_unavailable";
    let problems = status["problems"].as_array();
    let problem = problems.into_iter().flatten().find(problem).context("no problem is reported")?;
    let text = problem["message"].as_str().unwrap_or_default();
    assert!(text.contains("getpeername6") && text.contains("not permitted"), "{text}");
    Ok(())
}
