//! Numbers that have a form and check digits: cards, accounts, persons.

use super::{Found, checks, found};
use crate::Kind;

pub(super) fn find(text: &[u8], wanted: &impl Fn(Kind) -> bool, into: &mut Vec<Found>) {
    let (card, iban, person) = (
        wanted(Kind::Card),
        wanted(Kind::Iban),
        wanted(Kind::NationalId),
    );
    if !(card || iban || person) {
        return;
    }
    let mut from = 0;
    for (at, byte) in text.iter().enumerate() {
        if at < from || !byte.is_ascii_alphanumeric() || !may_begin(text, at) {
            continue;
        }
        let one = None
            .or_else(|| {
                card.then(|| self::card(text, at))
                    .flatten()
                    .map(|end| (Kind::Card, end))
            })
            .or_else(|| {
                iban.then(|| self::iban(text, at))
                    .flatten()
                    .map(|end| (Kind::Iban, end))
            })
            .or_else(|| {
                let end = person.then(|| self::person(text, at)).flatten();
                end.map(|end| (Kind::NationalId, end))
            });
        if let Some((kind, end)) = one {
            into.push(found(kind, at..end));
            from = end;
        }
    }
}

/// Not in the midst of a word, of a number with a fraction, or of what hyphens join.
fn may_begin(text: &[u8], at: usize) -> bool {
    let before = |back: usize| at.checked_sub(back).and_then(|at| text.get(at)).copied();
    match before(1) {
        Some(b'.') => !before(2).is_some_and(|byte| byte.is_ascii_digit()),
        Some(b'-') => !before(2).is_some_and(|byte| byte.is_ascii_alphanumeric()),
        _ => super::begins(text, at),
    }
}

fn may_end(text: &[u8], at: usize) -> bool {
    let next = text.get(at + 1);
    match text.get(at) {
        Some(b'.') => !next.is_some_and(u8::is_ascii_digit),
        Some(b'-') => !next.is_some_and(u8::is_ascii_alphanumeric),
        Some(byte) => !byte.is_ascii_alphanumeric() && *byte != b'_',
        None => true,
    }
}

/// How cards print their digits.
const GROUPS: [&[usize]; 5] = [
    &[4, 4, 4, 4],
    &[4, 4, 4, 4, 3],
    &[4, 4, 4, 1],
    &[4, 6, 5],
    &[4, 6, 4],
];

/// Where a card's number ends that begins here.
fn card(text: &[u8], from: usize) -> Option<usize> {
    let mut digits = Vec::with_capacity(19);
    let mut groups = Vec::with_capacity(5);
    let mut separator = None;
    let mut at = from;
    let mut end = None;
    loop {
        let group = super::run(text, at, |byte| byte.is_ascii_digit());
        if group == 0 || digits.len() + group > 19 {
            return end;
        }
        digits.extend(text.get(at..at + group)?.iter().map(|digit| digit - b'0'));
        groups.push(group);
        at += group;
        let is_shape = groups.len() == 1 || GROUPS.contains(&groups.as_slice());
        if is_shape && may_end(text, at) && checks::card(&digits) {
            end = Some(at);
        }
        let Some(next) = text.get(at).copied().filter(|byte| b" -".contains(byte)) else {
            return end;
        };
        if separator.is_some_and(|separator| separator != next) {
            return end;
        }
        separator = Some(next);
        at += 1;
        if !text.get(at).is_some_and(u8::is_ascii_digit) {
            return end;
        }
    }
}

/// How long accounts are, by country (ISO 13616 registry).
const IBANS: &[u8] = b"AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27\
DK18DO28EE20EG29ES24FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30\
KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29\
PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20YE30";

fn iban(text: &[u8], from: usize) -> Option<usize> {
    let country = text.get(from..from + 2)?.to_ascii_uppercase();
    let entry = IBANS
        .chunks_exact(4)
        .find(|entry| entry.starts_with(&country))?;
    let length = match entry {
        [_, _, tens, ones] => usize::from(tens - b'0') * 10 + usize::from(ones - b'0'),
        _ => return None,
    };
    let mut account = Vec::with_capacity(length);
    let mut at = from;
    while account.len() < length {
        match *text.get(at)? {
            byte if byte.is_ascii_alphanumeric() => account.push(byte.to_ascii_uppercase()),
            // In groups of four.
            b' ' | b'-' if account.len() % 4 == 0 => {}
            _ => return None,
        }
        at += 1;
    }
    (may_end(text, at) && checks::iban(&account)).then_some(at)
}

type Check = fn(&[u8]) -> bool;

/// How persons' numbers are written: `d` is a digit, `A` a letter, `X` either, and what else there is
/// stands for itself. The check sees digits and letters alone, in upper case.
const PERSONS: [(&str, Check); 36] = [
    ("ddd-dd-dddd", checks::us_ssn),
    ("ddd-ddd-ddd", checks::ca_sin),
    ("ddd ddd ddd", |number| {
        checks::ca_sin(number) || checks::au_tfn(number)
    }),
    ("ddd ddd dddd", checks::gb_nhs),
    ("AAddddddA", checks::gb_nino),
    ("AA dd dd dd A", checks::gb_nino),
    ("ddd.ddd.ddd-dd", checks::br_cpf),
    ("ddddddddddd", eleven),
    ("ddddddddA", checks::es_dni),
    ("dddddddd-A", checks::es_dni),
    ("AdddddddA", |number| {
        checks::es_nie(number) || checks::sg_nric(number)
    }),
    ("A-ddddddd-A", checks::es_nie),
    ("AAAAAAddAddAdddA", checks::it_codice_fiscale),
    ("dddddd-dddd", |number| {
        checks::se_personnummer(number) || checks::dk_cpr(number)
    }),
    ("dddddd+dddd", checks::se_personnummer),
    ("dddddddd-dddd", checks::se_personnummer),
    ("dddddddddddd", checks::se_personnummer),
    ("dddddd-dddX", checks::fi_hetu),
    ("dddddd+dddX", checks::fi_hetu),
    ("ddddddAdddX", checks::fi_hetu),
    ("dddddd ddddd", checks::no_fodselsnummer),
    ("dd.dd.dd-ddd.dd", checks::be_rijksregister),
    ("ddddddddddddddd", checks::fr_nir),
    ("d dd dd dd ddd ddd dd", checks::fr_nir),
    ("ddd.dddd.dddd.dd", checks::ch_ahv),
    ("ddddddddddddd", |number| {
        checks::ch_ahv(number) || checks::za_id(number)
    }),
    ("dddd dddd dddd", checks::in_aadhaar),
    ("dddd-dddd-dddd", checks::in_aadhaar),
    ("dddddddddddddddddX", checks::cn_resident),
    ("dddddd-ddddddd", checks::kr_rrn),
    ("AAAAddddddAAAAAAXd", checks::mx_curp),
    ("dddddddA", checks::ie_pps),
    ("dddddddAA", checks::ie_pps),
    ("dd ddd ddd ddd", checks::de_steuer_id),
    ("dd.ddd.ddd-d", checks::cl_rut),
    ("dd.ddd.ddd-A", checks::cl_rut),
];

fn eleven(number: &[u8]) -> bool {
    let checks: [Check; 6] = [
        checks::br_cpf,
        checks::pl_pesel,
        checks::no_fodselsnummer,
        checks::be_rijksregister,
        checks::tr_kimlik,
        checks::de_steuer_id,
    ];
    checks.iter().any(|check| check(number))
}

fn person(text: &[u8], from: usize) -> Option<usize> {
    PERSONS.iter().find_map(|(form, check)| {
        let end = from + form.len();
        let written = text.get(from..end)?;
        let is_form = written
            .iter()
            .zip(form.bytes())
            .all(|(byte, form)| match form {
                b'd' => byte.is_ascii_digit(),
                b'A' => byte.is_ascii_alphabetic(),
                b'X' => byte.is_ascii_alphanumeric(),
                _ => *byte == form,
            });
        if !is_form || !may_end(text, end) {
            return None;
        }
        let number: Vec<u8> = written
            .iter()
            .filter(|byte| byte.is_ascii_alphanumeric())
            .map(u8::to_ascii_uppercase)
            .collect();
        check(&number).then_some(end)
    })
}
