//! `mantled top`: groups, rates, refusals and sessions, as they change.

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Block, Row, Table},
};

use super::Exit;
use crate::{
    admin::{self, GroupStatus, OpenSession, Reply, Request, Status},
    config::DEFAULT_SOCKET,
};

/// How often the daemon is asked.
const PERIOD: Duration = Duration::from_secs(1);

/// Sessions that are shown.
const SESSIONS: usize = 100;

/// Arguments of `mantled top`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where the daemon is asked.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Print what there is once, as JSON, and end.
    #[arg(long)]
    json: bool,
}

/// What is shown.
#[derive(Clone, Debug, serde::Serialize)]
struct View {
    status: Status,
    sessions: Vec<OpenSession>,
    #[serde(skip)]
    at: Option<Instant>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    if arguments.json {
        let text = serde_json::to_string_pretty(&ask(arguments)?).map_err(Exit::failed)?;
        println!("{text}");
        return Ok(());
    }
    if !std::io::stdout().is_terminal() {
        return Err(Exit::invalid(
            "`mantled top` needs a terminal; `mantled top --json` prints once",
        ));
    }
    // An answer first: without a daemon the terminal is left as it is.
    let first = ask(arguments)?;
    let terminal = ratatui::init();
    let result = watch(terminal, arguments, first);
    ratatui::restore();
    result
}

fn ask(arguments: &Arguments) -> Result<View, Exit> {
    let other = || Exit::failed("the daemon answered something else");
    let ask = |request| admin::ask(&arguments.socket, &request).map_err(Exit::failed);
    let Reply::Status(status) = ask(Request::Status)? else {
        return Err(other());
    };
    let Reply::Sessions(sessions) = ask(Request::Sessions { most: SESSIONS })? else {
        return Err(other());
    };
    Ok(View {
        status: *status,
        sessions,
        at: Some(Instant::now()),
    })
}

fn watch(mut terminal: DefaultTerminal, arguments: &Arguments, first: View) -> Result<(), Exit> {
    let mut now = first.clone();
    let mut before = first;
    loop {
        terminal
            .draw(|frame| draw(frame, &before, &now))
            .map_err(Exit::failed)?;
        let until = Instant::now() + PERIOD;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !event::poll(left).map_err(Exit::failed)? {
                break;
            }
            match event::read().map_err(Exit::failed)? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL)
                        && key.code == KeyCode::Char('c');
                    if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                        return Ok(());
                    }
                }
                Event::Resize(..) => break,
                _ => {}
            }
        }
        before = std::mem::replace(&mut now, ask(arguments)?);
    }
}

fn draw(frame: &mut Frame<'_>, before: &View, now: &View) {
    let groups = now.status.groups.len().min(20) as u16 + 3;
    let [head, table, rest] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(groups),
        Constraint::Min(3),
    ])
    .areas(frame.area());
    let [ends, sessions] =
        Layout::horizontal([Constraint::Percentage(45), Constraint::Percentage(55)]).areas(rest);
    let seconds = seconds(before, now);
    frame.render_widget(summary(before, now, seconds), head);
    frame.render_widget(group_table(before, now, seconds), table);
    frame.render_widget(end_table(before, now, seconds), ends);
    frame.render_widget(session_table(now), sessions);
}

fn seconds(before: &View, now: &View) -> f64 {
    match (before.at, now.at) {
        (Some(before), Some(now)) => now.duration_since(before).as_secs_f64(),
        _ => 0.0,
    }
}

/// So many a second; a daemon that has started anew counts from 0.
fn rate(before: u64, now: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "-".to_owned();
    }
    format!("{:.1}", now.saturating_sub(before) as f64 / seconds)
}

fn summary(before: &View, now: &View, seconds: f64) -> ratatui::widgets::Paragraph<'static> {
    let status = &now.status;
    let trouble = status.records_failing || status.records_missing > 0;
    let text = format!(
        "{} open, {}/s; {} records written, {} lost, {} missing{}; {:.1} MiB",
        status.sessions_open,
        rate(before.status.sessions, status.sessions, seconds),
        status.records_written,
        status.records_dropped,
        status.records_missing,
        if status.records_failing {
            "; RECORDS CANNOT BE WRITTEN"
        } else {
            ""
        },
        status.resident_bytes as f64 / f64::from(1 << 20),
    );
    let style = if trouble {
        Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
    } else {
        Style::new()
    };
    ratatui::widgets::Paragraph::new(Line::styled(text, style)).block(Block::bordered().title(
        format!(
            " mantled {} (process {}); q ends ",
            status.version, status.pid
        ),
    ))
}

fn table<const N: usize>(
    title: &'static str,
    header: [&'static str; N],
    widths: [Constraint; N],
    rows: Vec<Row<'static>>,
) -> Table<'static> {
    Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::bordered().title(title))
}

fn group_table(before: &View, now: &View, seconds: f64) -> Table<'static> {
    let rows = now.status.groups.iter().map(|group| {
        let old = before
            .status
            .groups
            .iter()
            .find(|old| old.target == group.target)
            .map(|old| old.tally)
            .unwrap_or_default();
        let tally = group.tally;
        let style = if group.detached.is_empty() {
            Style::new()
        } else {
            Style::new().fg(Color::Red)
        };
        Row::new([
            group.target.clone(),
            group.mode.name().to_owned(),
            state(group).to_owned(),
            rate(old.sessions, tally.sessions, seconds),
            tally.sessions.to_string(),
            tally.upgraded.to_string(),
            tally.exposed.to_string(),
            tally.native.to_string(),
            tally.refused.to_string(),
            tally.failed.to_string(),
            tally.bypass_attempts.to_string(),
        ])
        .style(style)
    });
    table(
        " groups ",
        [
            "GROUP", "MODE", "STATE", "RATE/S", "SESSIONS", "UPGRADED", "EXPOSED", "NATIVE",
            "REFUSED", "FAILED", "BYPASSES",
        ],
        [
            Constraint::Fill(1),
            Constraint::Length(8),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
        ],
        rows.collect(),
    )
}

fn state(group: &GroupStatus) -> &'static str {
    match &group.cgroup {
        None => "not there",
        Some(_) if group.detached.is_empty() => "attached",
        Some(_) => "DETACHED",
    }
}

fn end_table(before: &View, now: &View, seconds: f64) -> Table<'static> {
    let mut ends: Vec<_> = now
        .status
        .ends
        .iter()
        .filter(|end| end.error != "none")
        .collect();
    ends.sort_by_key(|end| std::cmp::Reverse(end.count));
    let rows = ends.into_iter().map(|end| {
        let old = before.status.ends.iter().find(|old| {
            (&old.protocol, &old.verdict, &old.path, &old.error)
                == (&end.protocol, &end.verdict, &end.path, &end.error)
        });
        Row::new([
            end.verdict.clone(),
            end.error.clone(),
            end.protocol.clone(),
            rate(old.map_or(0, |old| old.count), end.count, seconds),
            end.count.to_string(),
        ])
    });
    table(
        " refused, failed and cut ",
        ["VERDICT", "ERROR", "PROTOCOL", "RATE/S", "COUNT"],
        [
            Constraint::Length(8),
            Constraint::Fill(1),
            Constraint::Length(11),
            Constraint::Length(7),
            Constraint::Length(8),
        ],
        rows.collect(),
    )
}

fn session_table(now: &View) -> Table<'static> {
    let unknown = || "?".to_owned();
    let rows = now.sessions.iter().map(|session| {
        Row::new([
            format!("{:.1} s", session.open_ms as f64 / 1000.0),
            session.process.clone().unwrap_or_else(unknown),
            session.pid.map_or_else(unknown, |pid| pid.to_string()),
            session.destination.clone().unwrap_or_else(unknown),
        ])
    });
    table(
        " open sessions, the newest first ",
        ["OPEN FOR", "PROCESS", "PID", "TO"],
        [
            Constraint::Length(10),
            Constraint::Length(16),
            Constraint::Length(8),
            Constraint::Fill(1),
        ],
        rows.collect(),
    )
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::{
        admin::{EndCount, Tally},
        config::{Inbound, Mode, OnDown},
    };

    fn view(sessions: u64) -> View {
        View {
            status: Status {
                version: "1.2.3".to_owned(),
                pid: 7,
                sessions_open: 1,
                sessions,
                commands: 0,
                commands_refused: 0,
                records_written: 3,
                records_dropped: 0,
                records_failing: false,
                records_missing: 0,
                resident_bytes: 1 << 20,
                ends: vec![EndCount {
                    protocol: "http".to_owned(),
                    verdict: "refused".to_owned(),
                    path: "none".to_owned(),
                    error: "tls_not_offered".to_owned(),
                    count: 4,
                }],
                kernel: Default::default(),
                groups: vec![GroupStatus {
                    canary: crate::share::Share::ALL,
                    reverts_in_s: None,
                    reverts_to: None,
                    target: "shipper.service".to_owned(),
                    origin: "command".to_owned(),
                    mode: Mode::Enforce,
                    inbound: Inbound::Refuse,
                    on_daemon_down: OnDown::Closed,
                    cgroup: Some("/sys/fs/cgroup/x".to_owned()),
                    detached: Vec::new(),
                    tally: Tally {
                        sessions,
                        upgraded: 42,
                        ..Tally::default()
                    },
                }],
            },
            sessions: vec![OpenSession {
                id: "id".to_owned(),
                open_ms: 1500,
                pid: Some(4711),
                process: Some("curl".to_owned()),
                group: Some(1),
                destination: Some("192.0.2.1:80".to_owned()),
            }],
            at: None,
        }
    }

    #[test]
    fn groups_refusals_and_sessions_are_shown() {
        let mut terminal = Terminal::new(TestBackend::new(140, 24)).unwrap();
        let (mut before, mut now) = (view(10), view(30));
        let at = Instant::now();
        before.at = Some(at);
        now.at = Some(at + Duration::from_secs(2));
        terminal.draw(|frame| draw(frame, &before, &now)).unwrap();
        let shown = terminal.backend().to_string();
        for expected in [
            "mantled 1.2.3",
            "shipper.service",
            "attached",
            "10.0",
            "42",
            "tls_not_offered",
            "curl",
            "192.0.2.1:80",
        ] {
            assert!(shown.contains(expected), "{expected} in\n{shown}");
        }
    }
}
