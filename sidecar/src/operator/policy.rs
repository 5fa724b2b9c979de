//! `merit policy`: what turns ratings into limits there, and its settings in force.

use serde_json::Value;

use super::{
    OperatorError,
    answers::{Market, Policy as Answer},
    args::Policy,
    client::Client,
    moment, print,
    show::{Hue, Paint, UNKNOWN, fields, known, number},
};

/// Does what `merit policy` asks.
pub(super) async fn run(options: Policy) -> Result<(), OperatorError> {
    let client = Client::new(&options.reach)?;
    let value = client.get("/policy").await?;
    let policy: Answer = client.read("/policy", &value)?;
    print(options.look, &value, |paint| shown(&policy, paint))
}

fn shown(policy: &Answer, paint: Paint) -> String {
    let head = &policy.head;
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| UNKNOWN.to_owned());
    let mut lines = vec![
        ("policy", text(&head.kind), Hue::Bold),
        ("mode", text(&head.mode), Hue::Plain),
        ("version", text(&head.version), Hue::Plain),
    ];
    if let Some(checkpoint) = &head.checkpoint {
        let age = checkpoint.age_seconds.and_then(moment::seconds);
        let age = age.map_or_else(String::new, |age| format!(", written {age} ago"));
        lines.push(("checkpoint", format!("{}{age}", text(&checkpoint.path)), Hue::Plain));
    }
    if let Some(market) = &policy.market {
        lines.push(("market", in_words(market), Hue::Plain));
    }
    // Settings are what `[policy]` would say: tables within are spelled as dotted keys.
    let mut settings = Vec::new();
    for (key, value) in &policy.config {
        flatten(key, value, &mut settings);
    }
    settings.sort();
    let settings: Vec<(&str, String, Hue)> =
        settings.iter().map(|(key, value)| (&**key, value.clone(), Hue::Plain)).collect();
    let title = paint.text("[policy]", Hue::Bold);
    format!("{}\n{title}\n{}", fields(&lines, paint), fields(&settings, paint))
}

fn flatten(path: &str, value: &Value, into: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                flatten(&format!("{path}.{key}"), value, into);
            }
        }
        value => into.push((super::show::visible(path), value.to_string())),
    }
}

/// Returns what capacity costs and how much of it is used.
pub(super) fn in_words(market: &Market) -> String {
    let share = known(market.use_share, |share| format!("{} %", number(share * 100.0)));
    let capacity = known(market.service_capacity, number);
    format!("price {}, {share} of {capacity}/s in use", known(market.price, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_told_as_a_file_would_have_them() {
        let policy: Answer = serde_json::from_value(serde_json::json!({
            "kind": "price", "mode": "live", "version": "7f3a",
            "checkpoint": {"path": "m.chkpt", "age_seconds": 40.0},
            "market": {"price": 0.82, "use_share": 0.974, "service_capacity": 500.0},
            "config": {"kind": "price", "tick": "1s", "guard": {"step_max": 0.1}, "a\u{1b}": []}
        }))
        .unwrap();
        let text = "policy      price\nmode        live\nversion     7f3a\n\
                    checkpoint  m.chkpt, written 40 s ago\n\
                    market      price 0.82, 97.4 % of 500/s in use\n\n[policy]\n\
                    a\\u{1b}         []\nguard.step_max  0.1\nkind            \"price\"\ntick            \"1s\"\n";
        assert_eq!(shown(&policy, Paint(false)), text);
    }
}
