//! What a policy can look at.

use std::{
    collections::{HashMap, HashSet},
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
        let context = self.context().map_err(|error| text(&error))?;
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

    fn context(&self) -> Result<Context, cedar_policy::ContextCreationError> {
        let fields = Fields::default()
            .with("now", RestrictedExpression::new_datetime(self.now))
            .text("transport", self.transport);
        let fields = match &self.action {
            Action::Connect => fields,
            Action::Open(opened) => {
                let fields = fields
                    .text_if("protocol", opened.protocol)
                    .text("path", opened.path);
                match &opened.tls {
                    None => fields,
                    Some(tls) => {
                        let tls = Fields::default()
                            .text_if("version", tls.version)
                            .text_if("cipher", tls.cipher)
                            .text_if("group", tls.group)
                            .text_if("verified_name", tls.verified_name)
                            .text_if("certificate", tls.certificate);
                        let tls = RestrictedExpression::new_record(tls.0)
                            .expect("each name is given once");
                        fields.with("tls", tls)
                    }
                }
            }
        };
        Context::from_pairs(fields.0)
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
        }
    }
}
