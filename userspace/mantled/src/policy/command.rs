//! What policies are asked about a command.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use mantled_policy::{Command, Http, HttpClass, Kubernetes, Redis, RedisClass, Sql, SqlClass};
use mantled_sql::{Action, Statement};
use mantled_wire::{http, redis};

/// One question about a command. A command may need more than one to be answered with yes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// Of a statement, one for each action that it needs.
    Sql(Action, Arc<Statement>),
    /// Of a request.
    Http(Arc<Request>, HttpClass),
    /// Of a command of Redis.
    Redis(Arc<redis::Understood>),
}

/// A request of HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    method: String,
    host: Option<String>,
    path: String,
    kubernetes: Option<Resource>,
}

/// What a request of the Kubernetes API is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Resource {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

/// Who has logged in, and where.
#[derive(Clone, Debug, Default)]
pub struct Login {
    /// The user.
    pub user: Option<String>,
    /// The database.
    pub database: Option<String>,
}

impl Question {
    /// Those about a statement. `prepared` tells what the name of a prepared statement may stand for,
    /// which is asked about as well where it is executed: other policies, perhaps, have judged it when
    /// it was prepared.
    pub fn of_statement(
        statement: &Statement,
        prepared: impl Fn(&str) -> Vec<Arc<[Statement]>>,
    ) -> Vec<Self> {
        let mut questions = Self::of_one(statement);
        let executed = statement.prepared.as_deref();
        if let Some(name) = executed.filter(|_| statement.kind != "prepare") {
            let readings = prepared(name);
            let known = readings.iter().flat_map(|reading| reading.iter());
            questions.extend(known.flat_map(Self::of_one));
        }
        questions
    }

    fn of_one(statement: &Statement) -> Vec<Self> {
        let told = Arc::new(Statement {
            shape: String::new(),
            names: BTreeSet::new(),
            ..statement.clone()
        });
        let actions = statement.actions.iter();
        actions
            .map(|action| Self::Sql(*action, Arc::clone(&told)))
            .collect()
    }

    /// Those about a request. `is_more`: it asks for more than its method says; `is_ambiguous`: servers
    /// could take it for more than one host's.
    pub fn of_request(
        method: &str,
        host: Option<&str>,
        target: &str,
        is_more: bool,
        is_ambiguous: bool,
    ) -> Vec<Self> {
        let target = http::target(target);
        let request = Arc::new(Request {
            method: method.to_owned(),
            host: host.map(str::to_owned),
            kubernetes: Resource::of(method, &target),
            path: target.path,
        });
        let reads = matches!(method, "GET" | "HEAD" | "OPTIONS") && !is_more;
        let class = if reads {
            HttpClass::Read
        } else {
            HttpClass::Write
        };
        let mut questions = vec![Self::Http(Arc::clone(&request), class)];
        if is_ambiguous || target.is_ambiguous {
            questions.push(Self::Http(request, HttpClass::Unparsed));
        }
        questions
    }

    /// The one about a command of Redis, of which these are all arguments, or not.
    pub fn of_redis(arguments: &[Cow<'_, [u8]>], whole: bool) -> Self {
        let mut understood = redis::understand(arguments);
        if !whole {
            understood.effect = redis::Effect::Admin;
        }
        Self::Redis(Arc::new(understood))
    }

    /// As the policies take it.
    pub fn asked<'a>(&'a self, login: &'a Login) -> Command<'a> {
        match self {
            Self::Sql(action, statement) => Command::Sql(Sql {
                class: match action {
                    Action::Read => SqlClass::Read,
                    Action::Write => SqlClass::Write,
                    Action::Ddl => SqlClass::Ddl,
                    Action::Admin => SqlClass::Admin,
                    Action::Unparsed => SqlClass::Unparsed,
                },
                user: login.user.as_deref(),
                database: login.database.as_deref(),
                kind: &statement.kind,
                tables: &statement.tables,
                schemas: &statement.schemas,
                functions: &statement.functions,
                unbounded: statement.unbounded,
            }),
            Self::Http(request, class) => Command::Http(Http {
                method: &request.method,
                host: request.host.as_deref(),
                path: &request.path,
                class: *class,
                kubernetes: request.kubernetes.as_ref().map(Resource::asked),
            }),
            Self::Redis(command) => Command::Redis(Redis {
                class: match command.effect {
                    redis::Effect::Read => RedisClass::Read,
                    redis::Effect::Write => RedisClass::Write,
                    redis::Effect::Admin => RedisClass::Admin,
                },
                command: &command.name,
                keys: &command.keys,
            }),
        }
    }

    /// What it is, in words without a value of the agent's: "delete is sql.write".
    pub fn words(&self) -> String {
        match self {
            Self::Sql(action, statement) => format!("{} is sql.{}", statement.kind, action.name()),
            Self::Http(request, class) => {
                let method = match request.method.as_str() {
                    known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS"
                    | "TRACE" | "PATCH") => known,
                    _ => "another method",
                };
                let class = match class {
                    HttpClass::Read => "read",
                    HttpClass::Write => "write",
                    HttpClass::Unparsed => "unparsed",
                };
                format!("{method} is http.{class}")
            }
            Self::Redis(command) => {
                let class = match command.effect {
                    redis::Effect::Read => "read",
                    redis::Effect::Write => "write",
                    redis::Effect::Admin => "admin",
                };
                let name = if command.is_known {
                    &command.name
                } else {
                    "an unknown command"
                };
                format!("{name} is redis.{class}")
            }
        }
    }
}

/// A request as the record may tell it: without its query, and without the segments of its path that
/// could be confidential (a token, a name, a number).
pub fn shape_of_request(method: &str, target: &str) -> String {
    let is_plain = |segment: &&str| {
        let is_version = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit());
        segment.len() <= 20
            && (segment
                .bytes()
                .all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_' | b'.'))
                || segment.strip_prefix('v').is_some_and(is_version))
    };
    let path = target.split('?').next().unwrap_or_default();
    let shown: Vec<&str> = path
        .split('/')
        .map(|segment| Some(segment).filter(is_plain).unwrap_or("*"))
        .collect();
    format!("{method} {}", shown.join("/"))
}

impl Resource {
    /// What a path of the Kubernetes API names (Kubernetes API concepts, "Resource URIs"); None: it is
    /// none.
    fn of(method: &str, target: &http::Target<'_>) -> Option<Self> {
        let mut segments = target
            .path
            .split('/')
            .skip(1)
            .filter(|part| !part.is_empty());
        let group = match segments.next()? {
            "api" => String::new(),
            "apis" => segments.next()?.to_owned(),
            _ => return None,
        };
        let version = segments.next()?.to_owned();
        let mut segments = segments.peekable();
        let is_old_watch = segments.next_if_eq(&"watch").is_some();
        let mut namespace = None;
        let mut first = segments.next()?;
        if first == "namespaces"
            && let Some(name) = segments.next()
        {
            match segments.peek() {
                // The namespace itself, its status, its finalize.
                None | Some(&"status" | &"finalize") => {
                    return Some(Self {
                        verb: verb(method, true, false),
                        group,
                        version,
                        resource: first.to_owned(),
                        subresource: segments.next().map(str::to_owned),
                        namespace: Some(name.to_owned()),
                        name: Some(name.to_owned()),
                    });
                }
                Some(_) => {
                    namespace = Some(name.to_owned());
                    first = segments.next()?;
                }
            }
        }
        let name = segments.next().map(str::to_owned);
        let subresource = segments.next().map(str::to_owned);
        let watches = target.query.is_some_and(|query| {
            query
                .split('&')
                .any(|pair| matches!(pair, "watch" | "watch=true" | "watch=1" | "watch=True"))
        });
        Some(Self {
            verb: verb(method, name.is_some(), watches || is_old_watch),
            group,
            version,
            resource: first.to_owned(),
            subresource,
            namespace,
            name,
        })
    }

    fn asked(&self) -> Kubernetes<'_> {
        Kubernetes {
            verb: self.verb,
            group: &self.group,
            version: &self.version,
            resource: &self.resource,
            subresource: self.subresource.as_deref(),
            namespace: self.namespace.as_deref(),
            name: self.name.as_deref(),
        }
    }
}

/// As Kubernetes' own authorization has it.
fn verb(method: &str, has_name: bool, watches: bool) -> &'static str {
    match (method, has_name) {
        ("GET" | "HEAD", _) if watches => "watch",
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_paths_are_understood() {
        for (method, path, expected) in [
            ("GET", "/api/v1/pods", "list  v1 pods - - -"),
            ("GET", "/api/v1/pods?watch=true&x=1", "watch  v1 pods - - -"),
            ("GET", "/api/v1/namespaces/a/pods/b", "get  v1 pods - a b"),
            (
                "POST",
                "/api/v1/namespaces/a/pods/b/exec?command=sh",
                "create  v1 pods exec a b",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection apps v1 deployments - a -",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/b/scale",
                "patch apps v1 deployments scale a b",
            ),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                "update  v1 namespaces finalize a a",
            ),
            ("GET", "/api/v1/namespaces/a", "get  v1 namespaces - a a"),
            ("GET", "/api/v1/namespaces", "list  v1 namespaces - - -"),
            (
                "GET",
                "/api/v1/watch/namespaces/a/secrets",
                "watch  v1 secrets - a -",
            ),
            ("GET", "/api/v1/nodes/n/proxy/x", "get  v1 nodes proxy - n"),
        ] {
            let found = Resource::of(method, &http::target(path)).unwrap();
            let or = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
            let told = format!(
                "{} {} {} {} {} {} {}",
                found.verb,
                found.group,
                found.version,
                found.resource,
                or(&found.subresource),
                or(&found.namespace),
                or(&found.name)
            );
            assert_eq!(told, expected, "{method} {path}");
        }
        for path in ["/", "/api", "/api/v1", "/apis/apps/v1", "/healthz"] {
            assert_eq!(Resource::of("GET", &http::target(path)), None, "{path}");
        }
    }
}
