//! The way to the API server: whose credentials, and how the connections behave.
//!
//! Nothing is sent here. A server that does not answer is found out by whoever asks it, and is no
//! error: enforcement does not wait for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};

/// Names a kubeconfig file.
const KUBECONFIG: &str = "KUBECONFIG";
/// Time to connect. The server is on the cluster's own network.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that is silent for so long is cut, and its watch resumed on another one: whoever
/// fails over behind a load balancer closes nothing. The server sends a bookmark on most watches
/// about once a minute.
const SILENCE: Duration = Duration::from_secs(120);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A kubeconfig file was named and is not usable.
    #[error(
        "kubeconfig {path}: {source}; correct the file, or name another one with --registry \
         kube:PATH or KUBECONFIG"
    )]
    Kubeconfig {
        /// The file, or the variable that names it.
        path: String,
        /// Why.
        source: KubeconfigError,
    },
    /// Neither a kubeconfig nor a pod's own credentials.
    #[error(
        "no credentials for the API server: {0}; in a pod, mount its service account's token \
         (automountServiceAccountToken); elsewhere name a kubeconfig with --registry kube:PATH or \
         KUBECONFIG"
    )]
    NoCredentials(InClusterError),
    /// The credentials cannot be used.
    #[error("cannot use the credentials for {server}: {source}; correct the certificates in them")]
    Unusable {
        /// Address of the API server.
        server: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// A client of the API server, and the server's address for messages.
///
/// # Errors
/// When no usable credentials are found; each error says where they were looked for.
pub(in crate::registry) async fn connect(
    kubeconfig: Option<&Path>,
) -> Result<(Client, String), ClientError> {
    let mut config = configuration(kubeconfig).await?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    // Otherwise a pooled connection's idle time would count against its next answer.
    config.reset_reader_on_write = true;
    // Whoever asks has a backoff of its own.
    config.default_retry = false;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = Client::try_from(config).map_err(|source| ClientError::Unusable {
        server: server.clone(),
        source: Box::new(source),
    })?;
    Ok((client, server))
}

/// The named file, else the one of `KUBECONFIG`, else the pod's own service account. A file in
/// somebody's home directory is not looked for: it would be found by surprise.
async fn configuration(kubeconfig: Option<&Path>) -> Result<Config, ClientError> {
    let named = kubeconfig.map(|path| (path.display().to_string(), Kubeconfig::read_from(path)));
    let named = named.or_else(|| {
        let path = PathBuf::from(std::env::var_os(KUBECONFIG).filter(|path| !path.is_empty())?);
        let read = Kubeconfig::from_env().transpose()?;
        Some((format!("{} ({KUBECONFIG})", path.display()), read))
    });
    let Some((path, read)) = named else {
        return Config::incluster().map_err(ClientError::NoCredentials);
    };
    let wrong = |source| ClientError::Kubeconfig { path: path.clone(), source };
    let read = read.map_err(wrong)?;
    Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Config\ncurrent-context: it\ncontexts:\n- name: it\n  \
                        context: {cluster: it, user: it}\nclusters:\n- name: it\n  cluster: \
                        {server: 'http://127.0.0.1:1'}\nusers:\n- name: it\n  user: {token: t}\n";

    fn read(text: &str) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connected = runtime.block_on(connect(Some(file.path())));
        connected.map(|(_, server)| server).map_err(|error| error.to_string())
    }

    #[test]
    fn a_kubeconfig_names_the_server_without_asking_it() {
        assert_eq!(read(GOOD).unwrap(), "http://127.0.0.1:1");
    }

    #[test]
    fn what_is_wrong_with_a_kubeconfig_is_said_with_its_path_and_a_remedy() {
        for (text, expected) in [
            (GOOD.replace("current-context: it", "current-context: other"), "context"),
            ("nonsense".to_owned(), "parse"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.starts_with("kubeconfig /"), "{error}");
            assert!(error.contains(expected) && error.contains("kube:PATH"), "{error}");
        }
    }
}
