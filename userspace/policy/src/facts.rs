//! What a policy can look at.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    path::Path,
    sync::LazyLock,
};

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
    Schema,
};

/// Everything about one question.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Who.
    pub workload: Workload<'a>,
    /// Where to.
    pub service: Service<'a>,
    /// What.
    pub action: Action<'a>,
    /// When: RFC 3339, UTC, with milliseconds.
    pub now: &'a str,
    /// "tcp" or "udp".
    pub transport: &'a str,
}

/// Who connects.
#[derive(Clone, Debug, Default)]
pub struct Workload<'a> {
    /// Base name of the executable.
    pub name: &'a str,
    /// Its path, where that could be read.
    pub executable: Option<&'a str>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Control group, below the hierarchy's root.
    pub cgroup: Option<&'a str>,
    /// systemd unit.
    pub unit: Option<&'a str>,
    /// Container id.
    pub container: Option<&'a str>,
    /// Uid of the pod.
    pub pod: Option<&'a str>,
}

/// Where to.
#[derive(Clone, Debug)]
pub struct Service<'a> {
    /// The name, where one is known.
    pub host: Option<&'a str>,
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// What it does.
#[derive(Clone, Debug)]
pub enum Action<'a> {
    /// It connects; nothing has been sent to the server.
    Connect,
    /// The way out is there.
    Open(Opened<'a>),
    /// It asks something of the server.
    Command(Opened<'a>, Command<'a>),
}

/// What an agent asks of its server.
#[derive(Clone, Debug)]
pub enum Command<'a> {
    /// A statement.
    Sql(Sql<'a>),
    /// A request.
    Http(Http<'a>),
    /// A command.
    Redis(Redis<'a>),
}

/// A statement of SQL: see the schema.
#[derive(Clone, Debug)]
pub struct Sql<'a> {
    /// What it does.
    pub class: SqlClass,
    /// Who has logged in.
    pub user: Option<&'a str>,
    /// To which database.
    pub database: Option<&'a str>,
    /// Its first words.
    pub kind: &'a str,
    /// What it names.
    pub tables: &'a BTreeSet<String>,
    /// What it names before them.
    pub schemas: &'a BTreeSet<String>,
    /// What it calls.
    pub functions: &'a BTreeSet<String>,
    /// It has no WHERE.
    pub unbounded: bool,
}

/// Which action a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlClass {
    /// `sql.read`
    Read,
    /// `sql.write`
    Write,
    /// `sql.ddl`
    Ddl,
    /// `sql.admin`
    Admin,
    /// `sql.unparsed`
    Unparsed,
}

/// A request of HTTP: see the schema.
#[derive(Clone, Debug)]
pub struct Http<'a> {
    /// As it was sent.
    pub method: &'a str,
    /// Without port.
    pub host: Option<&'a str>,
    /// Decoded.
    pub path: &'a str,
    /// Which action it is.
    pub class: HttpClass,
    /// Of the Kubernetes API.
    pub kubernetes: Option<Kubernetes<'a>>,
}

/// Which action a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpClass {
    /// `http.read`
    Read,
    /// `http.write`
    Write,
    /// `http.unparsed`
    Unparsed,
}

/// A request of the Kubernetes API: see the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes<'a> {
    /// "get", "list", ...
    pub verb: &'a str,
    /// "" for the core group.
    pub group: &'a str,
    /// "v1"
    pub version: &'a str,
    /// "pods"
    pub resource: &'a str,
    /// "exec"
    pub subresource: Option<&'a str>,
    /// "default"
    pub namespace: Option<&'a str>,
    /// Of the object.
    pub name: Option<&'a str>,
}

/// A command of Redis: see the schema.
#[derive(Clone, Debug)]
pub struct Redis<'a> {
    /// What it does.
    pub class: RedisClass,
    /// In lower case, with its subcommand.
    pub command: &'a str,
    /// Those that it names.
    pub keys: &'a [String],
}

/// Which action a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisClass {
    /// `redis.read`
    Read,
    /// `redis.write`
    Write,
    /// `redis.admin`
    Admin,
}

/// Protocols whose commands policies can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// PostgreSQL, MySQL.
    Sql,
    /// HTTP/1.
    Http,
    /// Redis.
    Redis,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sql, Self::Http, Self::Redis];

    /// As the schema has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sql => "sql",
            Self::Http => "http",
            Self::Redis => "redis",
        }
    }
}

/// The way out.
#[derive(Clone, Debug)]
pub struct Opened<'a> {
    /// The protocol, where one was recognised.
    pub protocol: Option<&'a str>,
    /// "verified", "native" or "exposed".
    pub path: &'a str,
    /// None: in clear.
    pub tls: Option<Tls<'a>>,
}

/// What is known of TLS on the way out.
#[derive(Clone, Debug, Default)]
pub struct Tls<'a> {
    /// "1.3"
    pub version: Option<&'a str>,
    /// Cipher suite.
    pub cipher: Option<&'a str>,
    /// Key exchange group.
    pub group: Option<&'a str>,
    /// The name that the server has proven.
    pub verified_name: Option<&'a str>,
    /// SHA-256 of its certificate.
    pub certificate: Option<&'a str>,
}

/// The question as Cedar takes it.
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) entities: Entities,
    pub(crate) action: &'static str,
    /// What the principal is, and what it is in.
    pub(crate) principal: Vec<EntityUid>,
    /// What the resource is, and what it is in.
    pub(crate) resource: Vec<EntityUid>,
}

/// Declares the entity types that are made here.
macro_rules! types {
    ($($name:ident = $text:literal),* $(,)?) => {
        $(static $name: LazyLock<EntityTypeName> =
            LazyLock::new(|| $text.parse().expect("a name of the schema"));)*
    };
}

types! {
    ACTION = "Action",
    CGROUP = "Cgroup",
    CONTAINER = "Container",
    HOST = "Host",
    POD = "Pod",
    SERVICE = "Service",
    UNIT = "Unit",
    USER = "User",
    WORKLOAD = "Workload",
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

/// The attributes of an entity, a record, or the context.
#[derive(Default)]
struct Fields(Vec<(String, RestrictedExpression)>);

impl Fields {
    fn with(mut self, name: &str, value: RestrictedExpression) -> Self {
        self.0.push((name.to_owned(), value));
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        self.with(name, RestrictedExpression::new_string(value.to_owned()))
    }

    fn text_if(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    fn set<'a>(self, name: &str, values: impl IntoIterator<Item = &'a String>) -> Self {
        let values = values
            .into_iter()
            .map(|value| RestrictedExpression::new_string(value.clone()));
        self.with(name, RestrictedExpression::new_set(values))
    }

    fn record(self, name: &str, fields: Self) -> Self {
        let record = RestrictedExpression::new_record(fields.0);
        self.with(name, record.expect("each name is given once"))
    }

    fn number(self, name: &str, value: u32) -> Self {
        self.with(name, RestrictedExpression::new_long(value.into()))
    }
}

impl Facts<'_> {
    pub(crate) fn ask(&self, schema: &Schema, actions: &Entities) -> Result<Asked, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let principal = self.workload.uids();
        let resource = self.service.uids();
        let name = self.action.name();
        let context = self.context()?;
        let (Some(who), Some(whereto)) = (principal.first(), resource.first()) else {
            return Err("nobody asks".to_owned());
        };
        let request = Request::new(
            who.clone(),
            uid(&ACTION, name),
            whereto.clone(),
            context,
            Some(schema),
        )
        .map_err(|error| text(&error))?;
        let made = [
            entity(&principal, self.workload.fields()),
            entity(&resource, self.service.fields()),
        ];
        let made: Result<Vec<Entity>, String> = made.into_iter().collect();
        let entities = actions
            .clone()
            .add_entities(made?, Some(schema))
            .map_err(|error| text(&error))?;
        Ok(Asked {
            request,
            entities,
            action: name,
            principal,
            resource,
        })
    }

    fn context(&self) -> Result<Context, String> {
        let fields = Fields::default()
            .with("now", RestrictedExpression::new_datetime(self.now))
            .text("transport", self.transport);
        let fields = match &self.action {
            Action::Connect => fields,
            Action::Open(opened) => opened.fields(fields),
            Action::Command(opened, command) => command.fields(opened.fields(fields)),
        };
        Context::from_pairs(fields.0).map_err(|error| error.to_string())
    }
}

impl Opened<'_> {
    fn fields(&self, fields: Fields) -> Fields {
        let fields = fields
            .text_if("protocol", self.protocol)
            .text("path", self.path);
        let Some(tls) = &self.tls else {
            return fields;
        };
        let tls = Fields::default()
            .text_if("version", tls.version)
            .text_if("cipher", tls.cipher)
            .text_if("group", tls.group)
            .text_if("verified_name", tls.verified_name)
            .text_if("certificate", tls.certificate);
        fields.record("tls", tls)
    }
}

impl Command<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Sql(sql) => match sql.class {
                SqlClass::Read => "sql.read",
                SqlClass::Write => "sql.write",
                SqlClass::Ddl => "sql.ddl",
                SqlClass::Admin => "sql.admin",
                SqlClass::Unparsed => "sql.unparsed",
            },
            Self::Http(http) => match http.class {
                HttpClass::Read => "http.read",
                HttpClass::Write => "http.write",
                HttpClass::Unparsed => "http.unparsed",
            },
            Self::Redis(redis) => match redis.class {
                RedisClass::Read => "redis.read",
                RedisClass::Write => "redis.write",
                RedisClass::Admin => "redis.admin",
            },
        }
    }

    fn fields(&self, fields: Fields) -> Fields {
        match self {
            Self::Sql(sql) => {
                let statement = Fields::default()
                    .text("kind", sql.kind)
                    .set("tables", sql.tables)
                    .set("schemas", sql.schemas)
                    .set("functions", sql.functions)
                    .with("unbounded", RestrictedExpression::new_bool(sql.unbounded));
                fields
                    .text_if("user", sql.user)
                    .text_if("database", sql.database)
                    .record("statement", statement)
            }
            Self::Http(http) => {
                let mut request = Fields::default()
                    .text("method", http.method)
                    .text_if("host", http.host)
                    .text("path", http.path);
                if let Some(kubernetes) = &http.kubernetes {
                    let asked = Fields::default()
                        .text("verb", kubernetes.verb)
                        .text("group", kubernetes.group)
                        .text("version", kubernetes.version)
                        .text("resource", kubernetes.resource)
                        .text_if("subresource", kubernetes.subresource)
                        .text_if("namespace", kubernetes.namespace)
                        .text_if("name", kubernetes.name);
                    request = request.record("kubernetes", asked);
                }
                fields.record("request", request)
            }
            Self::Redis(redis) => fields
                .text("command", redis.command)
                .set("keys", redis.keys),
        }
    }
}

/// The first of `uids`, in the others.
fn entity(uids: &[EntityUid], fields: Fields) -> Result<Entity, String> {
    let (uid, parents) = uids.split_first().ok_or("nobody asks")?;
    let parents: HashSet<EntityUid> = parents.iter().cloned().collect();
    let fields: HashMap<String, RestrictedExpression> = fields.0.into_iter().collect();
    Entity::new(uid.clone(), fields, parents).map_err(|error| error.to_string())
}

impl Workload<'_> {
    /// Itself, and what it is in.
    fn uids(&self) -> Vec<EntityUid> {
        let own = self.cgroup.unwrap_or(self.name);
        let mut uids = vec![uid(&WORKLOAD, own), uid(&USER, &self.uid.to_string())];
        for path in self
            .cgroup
            .iter()
            .flat_map(|path| Path::new(path).ancestors())
        {
            uids.push(uid(&CGROUP, &path.to_string_lossy()));
        }
        for (kind, id) in [
            (&UNIT, self.unit),
            (&CONTAINER, self.container),
            (&POD, self.pod),
        ] {
            uids.extend(id.map(|id| uid(kind, id)));
        }
        uids
    }

    fn fields(&self) -> Fields {
        Fields::default()
            .text("name", self.name)
            .text_if("executable", self.executable)
            .number("uid", self.uid)
            .number("gid", self.gid)
            .text_if("cgroup", self.cgroup)
            .text_if("unit", self.unit)
            .text_if("container", self.container)
            .text_if("pod", self.pod)
    }
}

impl Service<'_> {
    fn uids(&self) -> Vec<EntityUid> {
        let own = match self.host {
            Some(host) => format!("{host}:{}", self.port),
            None => std::net::SocketAddr::new(self.address, self.port).to_string(),
        };
        let mut uids = vec![uid(&SERVICE, &own)];
        uids.extend(self.host.map(|host| uid(&HOST, host)));
        uids
    }

    fn fields(&self) -> Fields {
        Fields::default()
            .text_if("host", self.host)
            .with(
                "address",
                RestrictedExpression::new_ip(self.address.to_string()),
            )
            .number("port", self.port.into())
    }
}

impl Action<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Open(_) => "open",
            Self::Command(_, command) => command.name(),
        }
    }
}
