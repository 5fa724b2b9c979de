use super::*;
use crate::simulate::{PolicyName, Request, compare};

fn figure(policies: &[PolicyName]) -> Figure {
    let request = Request {
        regimes: vec!["base".parse().unwrap()],
        policies: policies.to_vec(),
        seeds: "1".parse().unwrap(),
        agents: 50,
        ticks: 400,
        jobs: 1,
        versus: None,
        tuning: "1".parse().unwrap(),
        figures: true,
    };
    compare(&request, &|| {}).figures.remove(0)
}

/// Returns width, height and pixels.
fn decode(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width, info.height, pixels)
}

/// Counts the pixels of `rows` that are dark.
fn ink(pixels: &[u8], width: u32, rows: std::ops::Range<u32>) -> usize {
    let row = 3 * width as usize;
    let of = &pixels[row * rows.start as usize..row * rows.end as usize];
    of.chunks(3).filter(|pixel| pixel.iter().all(|part| *part < 110)).count()
}

#[test]
fn a_png_has_twice_the_size_and_its_title_is_painted_without_a_font_of_the_system() {
    let figure = figure(&[PolicyName::Static, PolicyName::PriceTrust]);
    for name in ["utility-base", "rates-base", "drift-base"] {
        let (width, height, pixels) =
            decode(&figure::png(&Named { name, figure: &figure }).unwrap());
        assert_eq!((width, height), (2 * figure::SIZE.0, 2 * figure::SIZE.1));
        // Nothing but the title stands there.
        assert!(ink(&pixels, width, 16..72) > 300, "{name}");
        assert!(ink(&pixels, width, 0..12) == 0, "{name}");
    }
}

#[test]
fn an_svg_names_every_policy_and_holds_no_number_that_is_none() {
    let figure = figure(&PolicyName::DEFAULT);
    for name in ["utility-base", "rates-base", "drift-base"] {
        let svg =
            String::from_utf8(figure::svg(&Named { name, figure: &figure }).unwrap()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
        for policy in PolicyName::DEFAULT {
            let named = svg.contains(&policy.to_string());
            assert_eq!(named, policy != PolicyName::Clairvoyant || name != "rates-base", "{name}");
        }
    }
}

#[test]
fn the_font_has_every_sign_that_figures_say() {
    let regimes = crate::simulate::REGIMES.iter().map(|regime| regime.about);
    let said: String = regimes.chain(["Utility over time, regime α Δ – %"]).collect();
    let font = ttf_glyphs(figure::FONT);
    for sign in said.chars() {
        assert!(font.contains(&u32::from(sign)), "{sign}");
    }
}

/// Returns the code points of the font's first `cmap` subtable of format 4 (OpenType 1.9, `cmap`).
fn ttf_glyphs(font: &[u8]) -> std::collections::BTreeSet<u32> {
    let u16_at = |at: usize| u16::from_be_bytes([font[at], font[at + 1]]);
    let u32_at = |at: usize| (u32::from(u16_at(at)) << 16) | u32::from(u16_at(at + 2));
    let tables = (0..usize::from(u16_at(4))).map(|n| 12 + 16 * n);
    let cmap = tables.into_iter().find(|at| &font[*at..at + 4] == b"cmap").unwrap();
    let cmap = u32_at(cmap + 8) as usize;
    let subtables =
        (0..usize::from(u16_at(cmap + 2))).map(|n| cmap + u32_at(cmap + 4 + 8 * n + 4) as usize);
    let table = subtables.into_iter().find(|at| u16_at(*at) == 4).unwrap();
    let segments = usize::from(u16_at(table + 6)) / 2;
    let mut points = std::collections::BTreeSet::new();
    for n in 0..segments {
        let end = u16_at(table + 14 + 2 * n);
        let start = u16_at(table + 16 + 2 * segments + 2 * n);
        points.extend((u32::from(start)..=u32::from(end)).filter(|point| *point != 0xffff));
    }
    points
}
