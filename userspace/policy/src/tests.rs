use std::{collections::BTreeSet, net::IpAddr};

use super::*;

const NOW: &str = "2026-01-02T03:04:05.678Z";

fn workload() -> Workload<'static> {
    Workload {
        name: "shipper",
        executable: Some("/usr/bin/shipper"),
        uid: 1000,
        gid: 1000,
        cgroup: Some("/system.slice/shipper.service"),
        unit: Some("shipper.service"),
        container: None,
        pod: None,
    }
}

fn service() -> Service<'static> {
    Service {
        host: Some("logs.example.com"),
        address: IpAddr::from([192, 0, 2, 7]),
        port: 5432,
    }
}

fn connect() -> Facts<'static> {
    Facts {
        workload: workload(),
        service: service(),
        action: Action::Connect,
        now: NOW,
        transport: "tcp",
    }
}

fn open(version: &'static str) -> Facts<'static> {
    Facts {
        action: Action::Open(Opened {
            protocol: Some("postgresql"),
            path: "verified",
            tls: Some(Tls {
                version: Some(version),
                ..Tls::default()
            }),
        }),
        ..connect()
    }
}

fn policies(text: &str) -> Policies {
    Policies::load(&[("test.cedar".to_owned(), text.to_owned())]).unwrap()
}

fn mistakes(text: &str) -> Vec<String> {
    let texts = [("dir/test.cedar".to_owned(), text.to_owned())];
    let mistakes = Policies::load(&texts).unwrap_err();
    mistakes.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_permitted_without_a_permit() {
    let decision = Policies::load(&[]).unwrap().decide(&connect());
    assert!(!decision.allowed);
    assert_eq!(decision.errors, [""; 0]);
    assert_eq!(decision.policies, [""; 0]);
}

#[test]
fn every_way_to_say_who_and_where() {
    for scope in [
        r#"principal in Unit::"shipper.service", action, resource"#,
        r#"principal in Cgroup::"/system.slice", action, resource"#,
        r#"principal in Cgroup::"/", action in Action::"access", resource"#,
        r#"principal in User::"1000", action in [Action::"connect"], resource"#,
        r#"principal == Workload::"/system.slice/shipper.service", action, resource"#,
        r#"principal is Workload, action == Action::"connect", resource is Service"#,
        r#"principal is Workload in User::"1000", action, resource"#,
        r#"principal, action, resource in Host::"logs.example.com""#,
        r#"principal, action, resource == Service::"logs.example.com:5432""#,
    ] {
        let decision = policies(&format!("permit({scope});")).decide(&connect());
        assert!(decision.allowed, "{scope}: {decision:?}");
        assert_eq!(decision.policies, ["test#1"]);
    }
    for scope in [
        r#"principal in Unit::"other.service", action, resource"#,
        r#"principal in Cgroup::"/system", action, resource"#,
        r#"principal, action == Action::"open", resource"#,
        r#"principal, action, resource in Host::"example.com""#,
    ] {
        let decision = policies(&format!("permit({scope});")).decide(&connect());
        assert!(!decision.allowed, "{scope}: {decision:?}");
    }
}

#[test]
fn facts_of_the_way_out() {
    let policies = policies(
        r#"
        @id("new tls") permit(principal, action, resource) unless {
            context has tls && context.tls has version && context.tls.version == "1.2"
        };
        "#
        .replace("action,", "action == Action::\"open\",")
        .as_str(),
    );
    assert!(policies.decide(&open("1.3")).allowed);
    assert!(!policies.decide(&open("1.2")).allowed);
    assert!(!policies.decide(&connect()).allowed);
    assert_eq!(policies.decide(&open("1.3")).policies, ["new tls"]);
}

#[test]
fn a_forbid_wins_and_is_named() {
    let policies = policies(
        r#"
        permit(principal, action, resource);
        @id("not-at-night") forbid(principal, action, resource)
            when { context.now.toTime() < duration("6h") };
        "#,
    );
    let decision = policies.decide(&connect());
    assert!(!decision.allowed);
    assert_eq!(decision.policies, ["not-at-night"]);
    let later = Facts {
        now: "2026-01-02T13:04:05.678Z",
        ..connect()
    };
    assert!(policies.decide(&later).allowed);
}

#[test]
fn what_cannot_be_evaluated_denies() {
    // Cedar would leave the forbid out.
    let policies = policies(
        "permit(principal, action, resource);
         forbid(principal, action, resource)
             when { principal.uid * 9223372036854775807 > 0 };",
    );
    let decision = policies.decide(&connect());
    assert!(!decision.allowed);
    assert_eq!(decision.errors.len(), 1, "{decision:?}");
}

#[test]
fn mistakes_have_a_place_and_a_remedy() {
    for (text, line, said) in [
        ("permit(principal, action, resource)", 1, "unexpected end"),
        (
            "permit(principal, action, resource);\n\npermit(principal, action, resource) when { principal.unti == \"x\" };",
            3,
            "unti",
        ),
        (
            "permit(principal, action, resource) when {\n  principal.unit == \"x\" };",
            2,
            "unit",
        ),
        (
            "permit(principal in Unti::\"x\", action, resource);",
            1,
            "Unti",
        ),
        (
            "permit(principal, action == Action::\"conect\", resource);",
            1,
            "conect",
        ),
        (
            "@id(\"a\") @aproval(\"b\") permit(principal, action, resource);",
            1,
            "@aproval means nothing",
        ),
        (
            "\n@id(\"a\") @approval(\"x\") permit(principal, action, resource);",
            2,
            "@approval is not available yet",
        ),
        (
            "permit(principal in ?principal, action, resource);",
            0,
            "templates",
        ),
    ] {
        let found = mistakes(text);
        let place = format!("dir/test.cedar:{line}: ");
        assert!(
            found
                .iter()
                .any(|mistake| mistake.starts_with(&place) && mistake.contains(said)),
            "{text}: {found:#?}"
        );
        assert!(found.iter().all(|mistake| mistake.contains("hint: ")));
    }
    let two = "@id(\"a\") permit(principal, action, resource);\n@id(\"a\") forbid(principal, action, resource);";
    assert!(mistakes(two).concat().contains("two policies"));
}

/// Of 5,000 policies as a fleet writes them, a question looks at a few.
#[test]
fn a_question_looks_at_the_policies_that_can_concern_it() {
    let mut text = String::new();
    for number in 0..5_000 {
        let scope = match number % 2 {
            0 => format!("principal in Unit::\"unit-{number}.service\", action, resource"),
            _ => format!("principal, action, resource in Host::\"host-{number}\""),
        };
        text.push_str(&format!("permit({scope});\n"));
    }
    text.push_str(
        "@id(\"mine\") permit(principal in Unit::\"shipper.service\", action, resource);",
    );
    let policies = policies(&text);
    assert_eq!(policies.count(), 5_001);
    let facts = connect();
    let asked = facts.ask(&policies.schema, &policies.actions).unwrap();
    let candidates = policies.index.candidates(&asked).unwrap();
    assert_eq!(candidates.policies().count(), 1);
    assert_eq!(policies.decide(&facts).policies, ["mine"]);
}

fn statement(class: SqlClass, tables: &BTreeSet<String>) -> Facts<'_> {
    let none = Box::leak(Box::default());
    let Action::Open(opened) = open("1.3").action else {
        unreachable!()
    };
    Facts {
        action: Action::Command(
            opened,
            Command::Sql(Sql {
                class,
                user: Some("app"),
                database: None,
                kind: "select",
                tables,
                schemas: none,
                functions: none,
                unbounded: false,
            }),
        ),
        ..connect()
    }
}

#[test]
fn commands_are_judged_by_what_they_are() {
    let policies = policies(
        r#"@id("reads") permit(principal, action == Action::"sql.read", resource)
           when { ["orders", "items"].containsAll(context.statement.tables) && context has user && context.user == "app" };
           permit(principal, action in Action::"access", resource);
           @id("get") permit(principal, action in Action::"http", resource in Host::"other")
           when { context.request has kubernetes && context.request.kubernetes.verb == "get" };"#,
    );
    let orders = BTreeSet::from(["orders".to_owned()]);
    let users = BTreeSet::from(["orders".to_owned(), "users".to_owned()]);
    assert!(policies.decide(&statement(SqlClass::Read, &orders)).allowed);
    assert!(!policies.decide(&statement(SqlClass::Read, &users)).allowed);
    assert!(
        !policies
            .decide(&statement(SqlClass::Write, &orders))
            .allowed
    );
    assert!(policies.decide(&open("1.3")).allowed);
    // The policy for HTTP is about another host.
    assert_eq!(policies.families(&open("1.3")), [Family::Sql]);
}

#[test]
fn who_names_no_command_asks_for_none() {
    for (text, families) in [
        ("permit(principal, action, resource);", vec![]),
        (
            r#"permit(principal, action in Action::"access", resource);"#,
            vec![],
        ),
        (
            r#"permit(principal, action in Action::"command", resource);"#,
            Family::ALL.to_vec(),
        ),
        (
            r#"forbid(principal, action == Action::"redis.admin", resource);"#,
            vec![Family::Redis],
        ),
        (
            r#"forbid(principal in Unit::"other", action in Action::"sql", resource);"#,
            vec![],
        ),
    ] {
        assert_eq!(policies(text).families(&open("1.3")), families, "{text}");
    }
}

#[test]
fn masks_of_all_permits_hold_together() {
    let policies = policies(
        r#"@mask("email, card=fixed") permit(principal, action == Action::"open", resource);
           @mask("email=null, column:users.ssn") permit(principal, action, resource);
           @mask("jwt") permit(principal, action == Action::"open", resource) when { context.path == "x" };"#,
    );
    let decision = policies.decide(&open("TLSv1.3"));
    assert_eq!(
        decision.masks.to_string(),
        "email=null, card=fixed, column:users.ssn"
    );
    let columns = policies.masked_columns();
    assert_eq!(columns.len(), 1);
    // What is denied has no obligations.
    let denying = policies_with_forbid();
    assert!(denying.decide(&open("TLSv1.3")).masks.is_empty());
}

fn policies_with_forbid() -> Policies {
    policies(
        r#"@mask("email") permit(principal, action, resource);
           forbid(principal, action == Action::"open", resource);"#,
    )
}

#[test]
fn masks_that_mean_nothing_are_mistakes() {
    let text = r#"
@id("a") @mask("mail") permit(principal, action, resource);
@id("b") @mask("email") forbid(principal, action, resource);"#;
    let mistakes = mistakes(text);
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("dir/test.cedar:2: @mask: \"mail\""),
        "{mistakes:?}"
    );
    assert!(mistakes[1].contains("forbids"), "{mistakes:?}");
}
