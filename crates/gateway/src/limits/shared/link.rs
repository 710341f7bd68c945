//! The connection to the shared store: one server, whoever Sentinel says is the master, or a cluster.
//!
//! Names are resolved by hickory, as everywhere in the gateway. TLS is always verified. Connections are made by the
//! keeper, on its own thread; whoever decides only sends on them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::io::AsyncDNSResolver;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind,
    TlsCertificates, TlsMode, Value,
};

use super::words;
use crate::settings::Secret;
use crate::upstream::connect::resolve;

/// Where the shared store is, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// What answers there.
    pub form: Form,
    /// Over TLS.
    pub tls: bool,
    /// As whom; `None`: the default user.
    pub username: Option<String>,
    /// With this password.
    pub password: Option<Secret>,
    /// The number of the database.
    pub database: i64,
    /// Whom to trust instead of the system's authorities, PEM.
    pub authorities: Option<Vec<u8>>,
    /// A certificate of our own, and its key, PEM.
    pub client: Option<(Vec<u8>, Secret)>,
}

/// What answers at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// One server.
    One(String, u16),
    /// One server on this machine.
    Socket(PathBuf),
    /// Sentinels that know the master of this name.
    Sentinel {
        /// Where they are.
        sentinels: Vec<(String, u16)>,
        /// The name.
        master: String,
        /// As whom they are asked.
        username: Option<String>,
        /// With this password.
        password: Option<Secret>,
    },
    /// A cluster, by some of its nodes.
    Cluster(Vec<(String, u16)>),
}

/// A connection; copies share it.
#[derive(Clone)]
pub(crate) enum Link {
    /// To one server.
    One(MultiplexedConnection),
    /// To a cluster.
    Cluster(ClusterConnection),
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::One(_) => "Link::One",
            Self::Cluster(_) => "Link::Cluster",
        })
    }
}

/// The longest that one step of a connection may take, and an answer that nobody else waits for.
pub(crate) const STEP: Duration = Duration::from_secs(1);

impl Link {
    /// Connects, and makes the script known.
    ///
    /// # Errors
    /// What the server says, or the network.
    pub(crate) async fn open(address: &Address) -> RedisResult<Self> {
        let mut link = match &address.form {
            Form::Cluster(nodes) => Self::Cluster(cluster(address, nodes).await?),
            Form::One(host, port) => Self::One(address.connect(host, *port).await?),
            Form::Socket(path) => {
                let at = ConnectionAddr::Unix(path.clone());
                Self::One(address.connect_to(at, address.login()).await?)
            }
            Form::Sentinel { sentinels, .. } => {
                let mut last = RedisError::from((ErrorKind::EmptySentinelList, "no sentinel"));
                let mut found = None;
                for (host, port) in sentinels {
                    match address.by_sentinel(host, *port).await {
                        Ok(master) => {
                            found = Some(master);
                            break;
                        }
                        Err(fault) => last = fault,
                    }
                }
                Self::One(found.ok_or(last)?)
            }
        };
        link.load().await?;
        Ok(link)
    }

    /// Asks; where the server has forgotten the script, it is told again.
    ///
    /// # Errors
    /// What the server says, or the network.
    pub(crate) async fn ask(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self.send(cmd).await {
            Err(fault) if is_unknown_script(&fault) => {
                self.load().await?;
                self.send(cmd).await
            }
            answered => answered,
        }
    }

    /// Asks many things in one round trip.
    ///
    /// # Errors
    /// As [`Self::ask`]; some of them may have been done.
    pub(crate) async fn ask_all(&mut self, pipe: &Pipeline) -> RedisResult<()> {
        match self.send_all(pipe).await {
            Err(fault) if is_unknown_script(&fault) => {
                self.load().await?;
                self.send_all(pipe).await
            }
            answered => answered,
        }
    }

    async fn load(&mut self) -> RedisResult<()> {
        let mut cmd = redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(words::BODY);
        self.send(&cmd).await.map(drop)
    }

    async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::One(link) => cmd.query_async(link).await,
            Self::Cluster(link) => cmd.query_async(link).await,
        }
    }

    async fn send_all(&mut self, pipe: &Pipeline) -> RedisResult<()> {
        let _answers: Vec<Value> = match self {
            Self::One(link) => pipe.query_async(link).await?,
            Self::Cluster(link) => pipe.query_async(link).await?,
        };
        Ok(())
    }
}

/// Whether the server has forgotten the script, since it was restarted or told to.
fn is_unknown_script(fault: &RedisError) -> bool {
    fault.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

impl Address {
    fn login(&self) -> RedisConnectionInfo {
        let login = RedisConnectionInfo::default().set_db(self.database);
        signed(login, self.username.as_ref(), self.password.as_ref())
    }

    fn at(&self, host: &str, port: u16) -> ConnectionAddr {
        if self.tls {
            ConnectionAddr::TcpTls {
                host: host.to_owned(),
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host.to_owned(), port)
        }
    }

    fn certificates(&self) -> TlsCertificates {
        TlsCertificates {
            client_tls: self.client.as_ref().map(|(chain, key)| ClientTlsConfig {
                client_cert: chain.clone(),
                client_key: key.expose().as_bytes().to_vec(),
            }),
            root_cert: self.authorities.clone(),
        }
    }

    async fn connect(&self, host: &str, port: u16) -> RedisResult<MultiplexedConnection> {
        self.connect_to(self.at(host, port), self.login()).await
    }

    async fn connect_to(
        &self,
        at: ConnectionAddr,
        login: RedisConnectionInfo,
    ) -> RedisResult<MultiplexedConnection> {
        let info = at.into_connection_info()?.set_redis_settings(login);
        let client = if self.tls {
            Client::build_with_tls(info, self.certificates())?
        } else {
            Client::open(info)?
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(STEP))
            .set_response_timeout(Some(STEP))
            .set_dns_resolver(Hickory);
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// The master that one sentinel knows, if it is one.
    async fn by_sentinel(&self, host: &str, port: u16) -> RedisResult<MultiplexedConnection> {
        let Form::Sentinel {
            master,
            username,
            password,
            ..
        } = &self.form
        else {
            return Err((ErrorKind::InvalidClientConfig, "not by sentinel").into());
        };
        let login = signed(
            RedisConnectionInfo::default(),
            username.as_ref(),
            password.as_ref(),
        );
        let mut sentinel = self.connect_to(self.at(host, port), login).await?;
        let (host, port): (String, u16) = redis::cmd("SENTINEL")
            .arg("get-master-addr-by-name")
            .arg(master)
            .query_async(&mut sentinel)
            .await?;
        let mut found = self.connect(&host, port).await?;
        let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut found).await?;
        let is_master = matches!(role.first(), Some(Value::BulkString(word)) if word == b"master");
        if is_master {
            Ok(found)
        } else {
            Err((
                ErrorKind::MasterNameNotFoundBySentinel,
                "the sentinel's master is none yet",
            )
                .into())
        }
    }
}

fn signed(
    login: RedisConnectionInfo,
    username: Option<&String>,
    password: Option<&Secret>,
) -> RedisConnectionInfo {
    let login = match username {
        Some(name) => login.set_username(name),
        None => login,
    };
    match password {
        Some(secret) => login.set_password(secret.expose()),
        None => login,
    }
}

async fn cluster(address: &Address, nodes: &[(String, u16)]) -> RedisResult<ClusterConnection> {
    let nodes: RedisResult<Vec<ConnectionInfo>> = nodes
        .iter()
        .map(|(host, port)| address.at(host, *port).into_connection_info())
        .collect();
    let mut builder = ClusterClientBuilder::new(nodes?)
        .connection_timeout(STEP)
        .response_timeout(STEP)
        .retries(2)
        .async_dns_resolver(Hickory);
    if let Some(name) = &address.username {
        builder = builder.username(name);
    }
    if let Some(secret) = &address.password {
        builder = builder.password(secret.expose());
    }
    if address.tls {
        builder = builder.tls(TlsMode::Secure).certs(address.certificates());
    }
    builder.build()?.get_async_connection().await
}

/// Names, resolved as those of model servers are.
struct Hickory;

impl AsyncDNSResolver for Hickory {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> redis::RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let found = resolve(host).await?;
            let all = found
                .into_iter()
                .map(move |address| SocketAddr::from((address, port)));
            Ok(Box::new(all) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}
