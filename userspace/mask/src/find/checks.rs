//! Check digits. A number comes as ASCII digits and upper case letters, without what separates them,
//! and as long as its form is; of a card, the digits' values.

/// ISO/IEC 7812: a known issuer's range, and Luhn's check digit.
pub(super) fn card(digits: &[u8]) -> bool {
    let prefix = |length: usize| {
        let head = digits.get(..length).unwrap_or_default();
        head.iter()
            .fold(0_u32, |number, digit| number * 10 + u32::from(*digit))
    };
    let length = digits.len();
    let is_known = match (prefix(1), prefix(2), prefix(3), prefix(4)) {
        (4, ..) => matches!(length, 13 | 16 | 19),
        (_, 34 | 37, ..) => length == 15,
        (_, 36 | 38 | 39, ..) | (_, _, 300..=305, _) => (14..=19).contains(&length),
        (_, 51..=55, ..) | (.., 2221..=2720) => length == 16,
        (.., 2200..=2204) => (16..=19).contains(&length),
        (.., 6011) | (_, _, 644..=649, _) | (_, 62 | 65, ..) => (16..=19).contains(&length),
        (.., 3528..=3589) => (16..=19).contains(&length),
        (.., 5018 | 5020 | 5038 | 5893 | 6304 | 6759 | 6761..=6763) => (13..=19).contains(&length),
        (.., 9792) => length == 16,
        _ => false,
    };
    let is_one_digit = digits.windows(2).all(|pair| pair.first() == pair.last());
    is_known && !is_one_digit && luhn(digits.iter().copied())
}

fn luhn(digits: impl DoubleEndedIterator<Item = u8>) -> bool {
    let sum: u32 = digits
        .rev()
        .enumerate()
        .map(|(place, digit)| {
            let digit = u32::from(digit);
            match digit * 2 {
                _ if place % 2 == 0 => digit,
                double if double > 9 => double - 9,
                double => double,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// ISO 13616: the remainder by 97 (ISO 7064).
pub(super) fn iban(account: &[u8]) -> bool {
    let (Some(head), Some(tail)) = (account.get(..4), account.get(4..)) else {
        return false;
    };
    let remainder = tail
        .iter()
        .chain(head)
        .fold(0_u32, |remainder, byte| match byte {
            b'0'..=b'9' => (remainder * 10 + u32::from(byte - b'0')) % 97,
            letter => (remainder * 100 + u32::from(letter - b'A') + 10) % 97,
        });
    let is_checked = head
        .get(2..)
        .is_some_and(|digits| digits.iter().all(u8::is_ascii_digit));
    is_checked && remainder == 1
}

/// A digit's value.
fn digit(number: &[u8], at: usize) -> u32 {
    number
        .get(at)
        .map_or(0, |digit| u32::from(digit.wrapping_sub(b'0')))
}

fn value(number: &[u8], from: usize, length: usize) -> u64 {
    (from..from + length).fold(0, |value, at| value * 10 + u64::from(digit(number, at)))
}

/// The sum of the first digits, each by its weight.
fn weighed(number: &[u8], weights: &[u32]) -> u32 {
    let digits = (0..).map(|at| digit(number, at));
    digits
        .zip(weights)
        .map(|(digit, weight)| digit * weight)
        .sum()
}

fn digits(number: &[u8]) -> impl DoubleEndedIterator<Item = u8> {
    number.iter().map(|digit| digit.wrapping_sub(b'0'))
}

fn is_date(month: u64, day: u64) -> bool {
    let days = match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

/// The letter at a place of an alphabet.
fn letter(alphabet: &[u8], at: u64) -> Option<u8> {
    alphabet.get(usize::try_from(at).ok()?).copied()
}

/// United States: no check digit, but numbers that are never given.
pub(super) fn us_ssn(number: &[u8]) -> bool {
    let (area, group, serial) = (
        value(number, 0, 3),
        value(number, 3, 2),
        value(number, 5, 4),
    );
    area != 0 && area != 666 && area < 900 && group != 0 && serial != 0
}

/// Canada.
pub(super) fn ca_sin(number: &[u8]) -> bool {
    !matches!(number.first(), Some(b'0' | b'8')) && luhn(digits(number))
}

/// Australia.
pub(super) fn au_tfn(number: &[u8]) -> bool {
    weighed(number, &[1, 4, 3, 7, 5, 8, 6, 9, 10]).is_multiple_of(11) && value(number, 0, 9) != 0
}

/// United Kingdom, health service.
pub(super) fn gb_nhs(number: &[u8]) -> bool {
    let check = 11 - weighed(number, &[10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11;
    check % 11 == digit(number, 9) && check != 10 && value(number, 0, 10) != 0
}

/// United Kingdom: no check digit, but prefixes that are never given.
pub(super) fn gb_nino(number: &[u8]) -> bool {
    let (Some(prefix), Some(suffix)) = (number.get(..2), number.last()) else {
        return false;
    };
    let never: [&[u8]; 7] = [b"BG", b"GB", b"NK", b"KN", b"TN", b"NT", b"ZZ"];
    prefix.iter().all(|letter| !b"DFIQUV".contains(letter))
        && prefix.last() != Some(&b'O')
        && !never.contains(&prefix)
        && (b'A'..=b'D').contains(suffix)
}

/// Brazil.
pub(super) fn br_cpf(number: &[u8]) -> bool {
    let first = weighed(number, &[10, 9, 8, 7, 6, 5, 4, 3, 2]) * 10 % 11 % 10;
    let second = weighed(number, &[11, 10, 9, 8, 7, 6, 5, 4, 3, 2]) * 10 % 11 % 10;
    let is_one_digit = number.windows(2).all(|pair| pair.first() == pair.last());
    first == digit(number, 9) && second == digit(number, 10) && !is_one_digit
}

const DNI: &[u8] = b"TRWAGMYFPDXBNJZSQVHLCKE";

/// Spain, citizens.
pub(super) fn es_dni(number: &[u8]) -> bool {
    letter(DNI, value(number, 0, 8) % 23).as_ref() == number.last()
}

/// Spain, foreigners.
pub(super) fn es_nie(number: &[u8]) -> bool {
    let series = match number.first() {
        Some(b'X') => 0,
        Some(b'Y') => 1,
        Some(b'Z') => 2,
        _ => return false,
    };
    let value = series * 10_000_000 + value(number, 1, 7);
    letter(DNI, value % 23).as_ref() == number.last()
}

/// Singapore.
pub(super) fn sg_nric(number: &[u8]) -> bool {
    let (offset, alphabet): (u32, &[u8]) = match number.first() {
        Some(b'S') => (0, b"JZIHGFEDCBA"),
        Some(b'T') => (4, b"JZIHGFEDCBA"),
        Some(b'F') => (0, b"XWUTRQPNMLK"),
        Some(b'G') => (4, b"XWUTRQPNMLK"),
        _ => return false,
    };
    let sum = offset + weighed(number.get(1..).unwrap_or_default(), &[2, 7, 6, 5, 4, 3, 2]);
    letter(alphabet, u64::from(sum % 11)).as_ref() == number.last()
}

/// Italy.
pub(super) fn it_codice_fiscale(number: &[u8]) -> bool {
    /// What letters (and the digits that stand in their order) are worth at odd places.
    const ODD: [u32; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let worth = |at: usize, byte: u8| {
        let order = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => byte.wrapping_sub(b'A'),
        };
        match at % 2 {
            0 => ODD.get(usize::from(order)).copied().unwrap_or(0),
            _ => u32::from(order),
        }
    };
    let body = number.get(..15).unwrap_or_default();
    let sum: u32 = body
        .iter()
        .enumerate()
        .map(|(at, byte)| worth(at, *byte))
        .sum();
    let is_month = number
        .get(8)
        .is_some_and(|month| b"ABCDEHLMPRST".contains(month));
    let day = value(number, 9, 2) % 40;
    is_month
        && (1..=31).contains(&day)
        && number.last().map(|last| u32::from(last - b'A')) == Some(sum % 26)
}

/// Poland, born from 1900 to 2099.
pub(super) fn pl_pesel(number: &[u8]) -> bool {
    let sum = weighed(number, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3]);
    let month = match value(number, 2, 2) {
        month @ 21..=32 => month - 20,
        month => month,
    };
    is_date(month, value(number, 4, 2)) && (10 - sum % 10) % 10 == digit(number, 10)
}

/// Sweden; a coordination number's day is 60 more.
pub(super) fn se_personnummer(number: &[u8]) -> bool {
    let short = number
        .get(number.len().saturating_sub(10)..)
        .unwrap_or_default();
    let is_century = number.len() == 10 || matches!(value(number, 0, 2), 18..=20);
    let day = value(short, 4, 2);
    let day = if day > 60 { day - 60 } else { day };
    is_century && is_date(value(short, 2, 2), day) && luhn(digits(short))
}

/// Denmark, as given until 2007.
pub(super) fn dk_cpr(number: &[u8]) -> bool {
    is_date(value(number, 2, 2), value(number, 0, 2))
        && weighed(number, &[4, 3, 2, 7, 6, 5, 4, 3, 2, 1]).is_multiple_of(11)
}

/// Finland; what separates may be a letter.
pub(super) fn fi_hetu(number: &[u8]) -> bool {
    let serial = number.len().saturating_sub(4);
    let separator = number.get(6..serial).unwrap_or_default();
    let combined = value(number, 0, 6) * 1000 + value(number, serial, 3);
    separator
        .iter()
        .all(|letter| b"ABCDEFUVWXY".contains(letter))
        && is_date(value(number, 2, 2), value(number, 0, 2))
        && letter(b"0123456789ABCDEFHJKLMNPRSTUVWXY", combined % 31).as_ref() == number.last()
}

/// Norway; a D-number's day is 40 more.
pub(super) fn no_fodselsnummer(number: &[u8]) -> bool {
    let day = value(number, 0, 2);
    let day = if day > 40 { day - 40 } else { day };
    let first = 11 - weighed(number, &[3, 7, 6, 1, 8, 9, 4, 5, 2]) % 11;
    let second = 11 - weighed(number, &[5, 4, 3, 2, 7, 6, 5, 4, 3, 2]) % 11;
    is_date(value(number, 2, 2), day)
        && first % 11 == digit(number, 9)
        && second % 11 == digit(number, 10)
}

/// Belgium, born before 2000 or since.
pub(super) fn be_rijksregister(number: &[u8]) -> bool {
    let (body, check) = (value(number, 0, 9), value(number, 9, 2));
    let is_checked = [body, body + 2_000_000_000]
        .iter()
        .any(|body| 97 - body % 97 == check);
    is_date(value(number, 2, 2), value(number, 4, 2)) && is_checked
}

/// Türkiye.
pub(super) fn tr_kimlik(number: &[u8]) -> bool {
    let odd: u32 = (0..9).step_by(2).map(|at| digit(number, at)).sum();
    let even: u32 = (1..8).step_by(2).map(|at| digit(number, at)).sum();
    let tenth = (odd * 7 + 100 - even) % 10;
    number.first() != Some(&b'0')
        && tenth == digit(number, 9)
        && (odd + even + tenth) % 10 == digit(number, 10)
}

/// Germany, taxes: of ten digits one is there twice or thrice (ISO 7064, MOD 11,10).
pub(super) fn de_steuer_id(number: &[u8]) -> bool {
    let count = |wanted: u8| {
        let body = number.get(..10).unwrap_or_default();
        body.iter().filter(|digit| **digit == wanted).count()
    };
    let repeated = (b'0'..=b'9').filter(|digit| count(*digit) > 1).count();
    let is_rare = (b'0'..=b'9').all(|digit| count(digit) <= 3);
    let product = (0..10).fold(10, |product, at| {
        let sum = (digit(number, at) + product) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    number.first() != Some(&b'0')
        && repeated == 1
        && is_rare
        && (11 - product) % 10 == digit(number, 10)
}

/// France, born in France's mainland or abroad.
pub(super) fn fr_nir(number: &[u8]) -> bool {
    let month = value(number, 3, 2);
    matches!(number.first(), Some(b'1' | b'2'))
        && ((1..=12).contains(&month) || (20..=42).contains(&month))
        && 97 - value(number, 0, 13) % 97 == value(number, 13, 2)
}

/// Switzerland.
pub(super) fn ch_ahv(number: &[u8]) -> bool {
    let sum = weighed(number, &[1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3]);
    number.starts_with(b"756") && (10 - sum % 10) % 10 == digit(number, 12)
}

/// South Africa.
pub(super) fn za_id(number: &[u8]) -> bool {
    is_date(value(number, 2, 2), value(number, 4, 2))
        && digit(number, 10) <= 2
        && luhn(digits(number))
}

/// India (Verhoeff).
pub(super) fn in_aadhaar(number: &[u8]) -> bool {
    /// How the digit of a place is permuted.
    const PERMUTED: [[usize; 10]; 8] = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [1, 5, 7, 6, 2, 8, 3, 0, 9, 4],
        [5, 8, 0, 3, 7, 9, 6, 1, 4, 2],
        [8, 9, 1, 6, 0, 4, 3, 5, 2, 7],
        [9, 4, 5, 3, 1, 2, 6, 8, 7, 0],
        [4, 2, 8, 6, 5, 7, 3, 9, 0, 1],
        [2, 7, 9, 3, 8, 0, 6, 4, 1, 5],
        [7, 0, 4, 6, 9, 1, 3, 2, 5, 8],
    ];
    /// The product in the dihedral group of ten elements.
    fn product(a: usize, b: usize) -> usize {
        match (a < 5, b < 5) {
            (true, true) => (a + b) % 5,
            (true, false) => 5 + (a + b - 5) % 5,
            (false, true) => 5 + (a - 5 + 5 - b) % 5,
            (false, false) => (a + 5 - b) % 5,
        }
    }
    let check = digits(number)
        .rev()
        .zip(PERMUTED.iter().cycle())
        .fold(0, |check, (digit, row)| {
            product(check, row.get(usize::from(digit)).copied().unwrap_or(0))
        });
    digit(number, 0) >= 2 && check == 0
}

/// China (GB 11643).
pub(super) fn cn_resident(number: &[u8]) -> bool {
    let sum = weighed(
        number,
        &[7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2],
    );
    matches!(value(number, 6, 2), 18..=20)
        && is_date(value(number, 10, 2), value(number, 12, 2))
        && letter(b"10X98765432", u64::from(sum % 11)).as_ref() == number.last()
}

/// South Korea, as given until 2020.
pub(super) fn kr_rrn(number: &[u8]) -> bool {
    let sum = weighed(number, &[2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5]);
    is_date(value(number, 2, 2), value(number, 4, 2))
        && (1..=8).contains(&digit(number, 6))
        && (11 - sum % 11) % 10 == digit(number, 12)
}

/// Mexico. (Its alphabet has an N with a tilde between N and O.)
pub(super) fn mx_curp(number: &[u8]) -> bool {
    let worth = |byte: u8| match byte {
        b'0'..=b'9' => u32::from(byte - b'0'),
        b'A'..=b'N' => u32::from(byte - b'A') + 10,
        _ => u32::from(byte.wrapping_sub(b'A')) + 11,
    };
    let body = number.get(..17).unwrap_or_default();
    let sum: u32 = body
        .iter()
        .zip((2..=18).rev())
        .map(|(byte, weight)| worth(*byte) * weight)
        .sum();
    is_date(value(number, 6, 2), value(number, 8, 2))
        && matches!(number.get(10), Some(b'H' | b'M' | b'X'))
        && (10 - sum % 10) % 10 == digit(number, 17)
}

/// Ireland.
pub(super) fn ie_pps(number: &[u8]) -> bool {
    let worth = |letter: u8| match letter {
        b'W' => 0,
        letter => u32::from(letter.wrapping_sub(b'A')) + 1,
    };
    let second = number.get(8).map_or(0, |letter| worth(*letter));
    let sum = weighed(number, &[8, 7, 6, 5, 4, 3, 2]) + second * 9;
    let is_second = number
        .get(8)
        .is_none_or(|letter| b"ABCDEFGHIW".contains(letter));
    is_second && letter(b"WABCDEFGHIJKLMNOPQRSTUV", u64::from(sum % 23)).as_ref() == number.get(7)
}

/// Chile.
pub(super) fn cl_rut(number: &[u8]) -> bool {
    let sum = weighed(number, &[3, 2, 7, 6, 5, 4, 3, 2]);
    letter(b"0123456789K", u64::from((11 - sum % 11) % 11)).as_ref() == number.last()
}
