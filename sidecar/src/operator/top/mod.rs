//! `merit top`: the loop as it is, on a terminal.
//!
//! One task asks, and asks anew at once when something else is wanted; the other draws, and waits for nothing but
//! keys, answers and signals. The terminal is given back on every way out: the end, an error, SIGTERM,
//! SIGINT and SIGHUP, and a panic.

mod draw;
mod screen;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use crossterm::event::{Event, EventStream};
use futures_util::StreamExt as _;
use ratatui::{
    DefaultTerminal,
    buffer::{Buffer, Cell},
    layout::Rect,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
};
use tower_merit::AgentId;
use unicode_width::UnicodeWidthStr as _;

use self::screen::{News, Next, Screen, Wish};
use super::{
    OperatorError, agents,
    args::Top,
    client::Client,
    say,
    show::{Paint, one_line},
};
use crate::{causes::with_causes, clock::unix_ms};

/// The picture of `--once`, in characters.
const ONCE: Rect = Rect { x: 0, y: 0, width: 110, height: 34 };
/// How often times on the screen move on, whatever else happens.
const REDRAW: Duration = Duration::from_secs(1);

/// Shows the loop until somebody quits.
pub(super) async fn run(options: Top) -> Result<(), OperatorError> {
    let client = Client::new(&options.reach)?;
    let wish = Wish::new(options.query, &options.sort);
    let screen = Screen::new(client.place().to_string(), wish);
    if options.once {
        return once(&client, screen, options.interval, options.look.json).await;
    }
    if options.look.json {
        return Err(OperatorError::Usage("--json: only with --once".to_owned()));
    }
    if !io::stdout().is_terminal() {
        return Err(OperatorError::Usage(
            "standard output is no terminal; --once prints one picture as plain text".to_owned(),
        ));
    }
    let colours = Paint::of(options.look.color).0;
    let failed = |error: io::Error| OperatorError::Failed(format!("terminal: {error}"));
    let mut terminal = begin().map_err(failed)?;
    let done = watching(&mut terminal, client, screen, options.interval, colours).await;
    let _ = terminal.show_cursor();
    // A terminal that is gone takes nothing back.
    let _ = ratatui::try_restore();
    done.map_err(failed)
}

/// Takes the terminal, and sees to it that a panic gives it back before it says what it has to say.
fn begin() -> io::Result<DefaultTerminal> {
    ratatui::try_init().inspect_err(|_| ratatui::restore())
}

async fn watching(
    terminal: &mut DefaultTerminal,
    client: Client,
    mut screen: Screen,
    every: Duration,
    colours: bool,
) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut keys = EventStream::new();
    let (wishes, wished) = watch::channel(screen.wish.clone());
    let (telling, mut told) = mpsc::channel(1);
    let asking = tokio::spawn(ask(client, wished, telling, every));
    let mut redraw = interval(REDRAW);
    redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let done = loop {
        let now_ms = unix_ms();
        let drawn = terminal.draw(|frame| {
            let area = frame.area();
            draw::draw(&mut screen, now_ms, colours, area, frame.buffer_mut());
        });
        if let Err(error) = drawn {
            break Err(error);
        }
        tokio::select! {
            Some(news) = told.recv() => screen.told(news, unix_ms()),
            key = keys.next() => match key {
                Some(Ok(Event::Key(key))) => match screen.key(key) {
                    Next::Stay => {}
                    Next::Ask => {
                        wishes.send_replace(screen.wish.clone());
                    }
                    Next::Quit => break Ok(()),
                },
                // Sizes and the rest: the next picture is drawn as large as the terminal is.
                Some(Ok(_)) => {}
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            },
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => break Ok(()),
            _ = redraw.tick() => {}
        }
    };
    asking.abort();
    done
}

/// Asks again and again for what is wished, and at once for what is wished anew, until nobody wants to know.
async fn ask(
    client: Client,
    mut wished: watch::Receiver<Wish>,
    telling: mpsc::Sender<Result<News, String>>,
    every: Duration,
) {
    loop {
        let wish = wished.borrow_and_update().clone();
        let news = tokio::select! {
            news = look(&client, wish) => news,
            changed = wished.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let news = news.map(|(news, _)| news).map_err(|error| with_causes(&error));
        if telling.send(news).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(every) => {}
            changed = wished.changed() => if changed.is_err() { return },
        }
    }
}

/// Returns what there is to see now, and the answers as they came.
async fn look(
    client: &Client,
    wish: Wish,
) -> Result<(News, [serde_json::Value; 2]), OperatorError> {
    let path = wish.path();
    let overview = client.get("/overview").await?;
    let page = client.get(&path).await?;
    let agent = match wish.agent.as_deref().map(AgentId::new) {
        Some(Ok(id)) => {
            let path = agents::path(&id);
            match client.get(&path).await {
                Ok(value) => Some(
                    client.read(&path, &value).map(Box::new).map_err(|error| error.to_string()),
                ),
                // It is about this agent only.
                Err(error @ OperatorError::Refused { .. }) => Some(Err(error.to_string())),
                Err(error) => return Err(error),
            }
        }
        Some(Err(error)) => Some(Err(error.to_string())),
        None => None,
    };
    let news = News {
        wish,
        overview: client.read("/overview", &overview)?,
        page: client.read(&path, &page)?,
        agent,
    };
    Ok((news, [overview, page]))
}

async fn once(
    client: &Client,
    mut screen: Screen,
    every: Duration,
    json: bool,
) -> Result<(), OperatorError> {
    let (first, _) = look(client, screen.wish.clone()).await?;
    screen.told(Ok(first), unix_ms());
    sleep(every).await;
    let (second, [overview, agents]) = look(client, screen.wish.clone()).await?;
    if json {
        return say(&one_line(&serde_json::json!({"overview": overview, "agents": agents})));
    }
    screen.told(Ok(second), unix_ms());
    let mut picture = Buffer::empty(ONCE);
    draw::draw(&mut screen, unix_ms(), false, ONCE, &mut picture);
    // The last line tells of keys, and there are none here.
    let text = plain(&picture);
    say(text.trim_end().rsplit_once('\n').map_or("", |(picture, _)| picture))
}

/// Returns what `picture` shows, a line each, without spaces at their ends.
fn plain(picture: &Buffer) -> String {
    let area = picture.area();
    let mut text = String::new();
    for y in area.top()..area.bottom() {
        let mut line = String::new();
        let mut x = area.left();
        while x < area.right() {
            let symbol = picture.cell((x, y)).map_or(" ", Cell::symbol);
            line.push_str(symbol);
            // A wide character covers the cell behind it.
            x += u16::try_from(symbol.width().max(1)).unwrap_or(1);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
