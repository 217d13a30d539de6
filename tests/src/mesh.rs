//! The mesh: a real Envoy as egress gateway, a real Envoy as sidecar, and the upstream they reach.
//!
//! The sidecar's capture is Istio's: outbound TCP is redirected to port 15001 unless the proxy's
//! own user or group sends it, or it stays on loopback; IPv4 only.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::address::STRIPE;
use crate::lab::{Lab, PROXY, Pod};
use crate::process::{Place, Process, nft, wait_until};

/// Where the gateway takes TLS, passed through by server name.
pub const GATEWAY_TLS: u16 = 8443;
/// Where the gateway takes HTTP, to which it adds TLS.
pub const GATEWAY_HTTP: u16 = 8080;
/// Where the sidecar takes what is redirected.
const SIDECAR: u16 = 15001;
/// The host whose HTTP the gateway turns into HTTPS (the article's step 4).
pub const PLAIN_HOST: &str = "external-api.example.com";
/// The host whose TLS is passed through (the article's step 3).
pub const TLS_HOST: &str = "api.stripe.com";

/// The mesh's processes.
#[derive(Debug)]
pub struct Mesh {
    /// Both Envoys and the upstream.
    pub processes: Vec<Process>,
}

/// The Envoy binary: `EGRESS_ENVOY`, or where `cargo xtask setup` keeps it.
///
/// # Errors
/// When there is none; the message says how to get it.
pub fn envoy() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EGRESS_ENVOY") {
        return Ok(PathBuf::from(path));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let kept = cache.unwrap_or_default().join("egress-enforcer/envoy-1.40.0/envoy/_bin/envoy");
    ensure!(
        kept.is_file(),
        "there is no Envoy at {}: run `cargo xtask setup`, or set EGRESS_ENVOY",
        kept.display()
    );
    Ok(kept)
}

impl Mesh {
    /// Starts upstream, gateway and sidecar, and waits until each takes connections.
    ///
    /// # Errors
    /// When one does not come up; its log is named.
    pub fn start(lab: &Lab) -> Result<Self> {
        let internet = Place { netns: Some(&lab.internet), ..Place::default() };
        let upstream = upstream(lab, &internet)?;
        capture(&lab.checkout)?;
        let gateway_place = lab.gateway.place();
        let gateway = start_envoy(lab, &gateway_place, "gateway", 1, &gateway_config())?;
        let sidecar_place = Place { user: Some(PROXY), ..lab.checkout.place() };
        let config = sidecar_config(SocketAddr::from((lab.gateway.address().v4, 0)));
        let sidecar = start_envoy(lab, &sidecar_place, "sidecar", 2, &config)?;
        let mut mesh = Self { processes: vec![upstream, gateway, sidecar] };
        for (pod, port, what) in
            [(&lab.gateway, GATEWAY_TLS, "gateway"), (&lab.checkout, SIDECAR, "sidecar")]
        {
            mesh.listening(lab, pod, port, what)?;
        }
        Ok(mesh)
    }

    fn listening(&mut self, lab: &Lab, pod: &Pod, port: u16, what: &str) -> Result<()> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let connect =
            || Ok(TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok());
        let log = lab.file("log").join(what);
        wait_until("Envoy takes connections", Duration::from_secs(15), || {
            for process in &mut self.processes {
                if let Some(status) = process.ended()? {
                    bail!("a process of the mesh ended with {status}");
                }
            }
            pod.netns.run(connect)
        })
        .with_context(|| format!("{what}: see {}", log.display()))
        .map(drop)
    }
}

/// Istio's redirection, for IPv4.
fn capture(pod: &Pod) -> Result<()> {
    let (uid, gid) = PROXY;
    let rules = format!(
        "table ip mesh {{\n\
           chain output {{\n\
             type nat hook output priority -100;\n\
             oif \"lo\" return\n\
             meta skuid {uid} return\n\
             meta skgid {gid} return\n\
             meta l4proto tcp redirect to :{SIDECAR}\n\
           }}\n\
         }}\n"
    );
    let place = Place { netns: Some(&pod.netns), ..Place::default() };
    nft(&place, &rules)
}

/// A TLS server that answers HTTP, on both families.
fn upstream(lab: &Lab, place: &Place<'_>) -> Result<Process> {
    let (key, certificate) = (lab.file("key.pem"), lab.file("certificate.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=api.stripe.com"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .context("start openssl")?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr).trim());
    let script = lab.file("upstream.py");
    std::fs::write(&script, UPSTREAM).context("write the upstream's script")?;
    let mut command = place.command("python3")?;
    command.arg(&script).arg(&certificate).arg(&key).stdout(Stdio::piped());
    command.stderr(lab.log("upstream")?);
    let mut server = Process::start(command, "upstream TLS server")?;
    let mut ready = [0u8; 6];
    let stdout = server.child().stdout.as_mut().context("upstream has no output")?;
    std::io::Read::read_exact(stdout, &mut ready)
        .with_context(|| format!("wait for the upstream: see {}", lab.file("log").display()))?;
    Ok(server)
}

const UPSTREAM: &str = r#"
import http.server, socket, ssl, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"upstream over TLS\n"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super(http.server.HTTPServer, self).server_bind()
        self.server_name, self.server_port = "upstream", 443
    def get_request(self):
        connection, peer = super().get_request()
        connection.settimeout(5)
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer
    def handle_error(self, *arguments):
        pass

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server = Server(("::", 443), Handler)
print("ready", flush=True)
server.serve_forever()
"#;

fn start_envoy(
    lab: &Lab,
    place: &Place<'_>,
    name: &str,
    base: u32,
    config: &str,
) -> Result<Process> {
    let mut command = place.command(envoy()?)?;
    // Shared memory of two labs must not meet.
    let base = std::process::id() % 100_000 * 10 + base;
    command.args(["--concurrency", "1", "--log-level", "warn", "--base-id", &base.to_string()]);
    command.args(["--config-yaml", config]);
    command.stdout(lab.log(&format!("{name}.access"))?).stderr(lab.log(name)?);
    Process::start(command, &format!("Envoy ({name})"))
}

const TCP_PROXY: &str =
    "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TLS_INSPECTOR: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const HTTP_INSPECTOR: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
const ORIGINAL_DST: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
const STDOUT: &str =
    "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
const UPSTREAM_TLS: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

fn tcp_proxy(cluster: &str) -> String {
    format!(
        "[{{name: tcp, typed_config: {{'@type': {TCP_PROXY}, stat_prefix: {cluster}, cluster: {cluster}, \
          access_log: [{{name: stdout, typed_config: {{'@type': {STDOUT}}}}}]}}}}]"
    )
}

fn http(cluster: &str, host: &str) -> String {
    format!(
        "[{{name: http, typed_config: {{'@type': {HTTP}, stat_prefix: {cluster}, \
          access_log: [{{name: stdout, typed_config: {{'@type': {STDOUT}}}}}], \
          route_config: {{virtual_hosts: [{{name: egress, domains: ['{host}'], \
            routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}, \
          http_filters: [{{name: router, typed_config: {{'@type': {ROUTER}}}}}]}}}}]"
    )
}

fn cluster(name: &str, address: SocketAddr, more: &str) -> String {
    format!(
        "  - {{name: {name}, type: STATIC, connect_timeout: 2s, {more} load_assignment: {{cluster_name: {name}, \
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: '{}', \
         port_value: {}}}}}}}}}]}}]}}}}\n",
        address.ip(),
        address.port()
    )
}

/// TLS passed through by server name; HTTP to one host, to which TLS is added.
fn gateway_config() -> String {
    let upstream = SocketAddr::from((STRIPE.v4, 443));
    let originate = format!(
        "transport_socket: {{name: tls, typed_config: {{'@type': {UPSTREAM_TLS}, sni: {PLAIN_HOST}}}}},"
    );
    let on = |port: u16| {
        format!(
            "address: {{socket_address: {{address: '::', ipv4_compat: true, port_value: {port}}}}}"
        )
    };
    format!(
        "static_resources:\n  listeners:\n  \
         - {{name: tls, {}, listener_filters: [{{name: tls, typed_config: {{'@type': {TLS_INSPECTOR}}}}}], \
           filter_chains: [{{filter_chain_match: {{server_names: [{TLS_HOST}]}}, filters: {}}}]}}\n  \
         - {{name: http, {}, filter_chains: [{{filters: {}}}]}}\n  clusters:\n{}{}",
        on(GATEWAY_TLS),
        tcp_proxy("upstream"),
        on(GATEWAY_HTTP),
        http("upstream_tls", PLAIN_HOST),
        cluster("upstream", upstream, ""),
        cluster("upstream_tls", upstream, &originate),
    )
}

/// What VirtualServices route goes to the gateway; everything else goes where the application
/// wanted, as `ALLOW_ANY` does.
fn sidecar_config(gateway: SocketAddr) -> String {
    let at = |port| SocketAddr::new(gateway.ip(), port);
    format!(
        "static_resources:\n  listeners:\n  \
         - {{name: outbound, address: {{socket_address: {{address: 0.0.0.0, port_value: {SIDECAR}}}}}, \
           listener_filters: [{{name: original, typed_config: {{'@type': {ORIGINAL_DST}}}}}, \
             {{name: tls, typed_config: {{'@type': {TLS_INSPECTOR}}}}}, \
             {{name: http, typed_config: {{'@type': {HTTP_INSPECTOR}}}}}], \
           listener_filters_timeout: 0.3s, continue_on_listener_filters_timeout: true, \
           filter_chains: [{{filter_chain_match: {{server_names: [{TLS_HOST}]}}, filters: {}}}, \
             {{filter_chain_match: {{application_protocols: [http/1.0, http/1.1]}}, filters: {}}}], \
           default_filter_chain: {{filters: {}}}}}\n  clusters:\n{}{}  \
         - {{name: passthrough, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 2s}}\n",
        tcp_proxy("gateway_tls"),
        http("gateway_http", PLAIN_HOST),
        tcp_proxy("passthrough"),
        cluster("gateway_tls", at(GATEWAY_TLS), ""),
        cluster("gateway_http", at(GATEWAY_HTTP), ""),
    )
}
