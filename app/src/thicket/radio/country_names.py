# SPDX-License-Identifier: Apache-2.0
"""The names of the countries of :mod:`thicket.radio.countries`, for people who write a name.

Imported only to help with a mistake.
"""

import unicodedata
from difflib import get_close_matches

_ENGLISH = """
    AD Andorra; AE United Arab Emirates; AF Afghanistan; AI Anguilla; AL Albania; AM Armenia;
    AN Netherlands Antilles; AR Argentina; AS American Samoa; AT Austria; AU Australia; AW Aruba;
    AZ Azerbaijan; BA Bosnia and Herzegovina; BB Barbados; BD Bangladesh; BE Belgium;
    BF Burkina Faso; BG Bulgaria; BH Bahrain; BL Saint Barthélemy; BM Bermuda; BN Brunei;
    BO Bolivia; BR Brazil; BS Bahamas; BT Bhutan; BW Botswana; BY Belarus; BZ Belize; CA Canada;
    CF Central African Republic; CH Switzerland; CI Côte d'Ivoire; CL Chile; CN China;
    CO Colombia; CR Costa Rica; CU Cuba; CX Christmas Island; CY Cyprus; CZ Czechia; DE Germany;
    DK Denmark; DM Dominica; DO Dominican Republic; DZ Algeria; EC Ecuador; EE Estonia; EG Egypt;
    ES Spain; ET Ethiopia; FI Finland; FM Micronesia; FO Faroe Islands; FR France;
    GB United Kingdom; GD Grenada; GE Georgia; GF French Guiana; GH Ghana; GI Gibraltar;
    GL Greenland; GP Guadeloupe; GR Greece; GT Guatemala; GU Guam; GY Guyana; HK Hong Kong;
    HN Honduras; HR Croatia; HT Haiti; HU Hungary; ID Indonesia; IE Ireland; IL Israel;
    IM Isle of Man; IN India; IR Iran; IS Iceland; IT Italy; JM Jamaica; JO Jordan; JP Japan;
    KE Kenya; KH Cambodia; KN Saint Kitts and Nevis; KP North Korea; KR South Korea; KW Kuwait;
    KY Cayman Islands; KZ Kazakhstan; LB Lebanon; LC Saint Lucia; LI Liechtenstein; LK Sri Lanka;
    LS Lesotho; LT Lithuania; LU Luxembourg; LV Latvia; MA Morocco; MC Monaco; MD Moldova;
    ME Montenegro; MF Saint Martin; MH Marshall Islands; MK North Macedonia; MN Mongolia;
    MO Macau; MP Northern Mariana Islands; MQ Martinique; MR Mauritania; MT Malta; MU Mauritius;
    MV Maldives; MW Malawi; MX Mexico; MY Malaysia; NA Namibia; NG Nigeria; NI Nicaragua;
    NL Netherlands; NO Norway; NP Nepal; NZ New Zealand; OM Oman; PA Panama; PE Peru;
    PF French Polynesia; PG Papua New Guinea; PH Philippines; PK Pakistan; PL Poland;
    PM Saint Pierre and Miquelon; PR Puerto Rico; PT Portugal; PW Palau; PY Paraguay; QA Qatar;
    RE Réunion; RO Romania; RS Serbia; RU Russia; RW Rwanda; SA Saudi Arabia; SE Sweden;
    SG Singapore; SI Slovenia; SK Slovakia; SM San Marino; SN Senegal; SR Suriname;
    SV El Salvador; SX Sint Maarten; SY Syria; TC Turks and Caicos Islands; TD Chad; TG Togo;
    TH Thailand; TN Tunisia; TR Turkey; TT Trinidad and Tobago; TW Taiwan; TZ Tanzania;
    UA Ukraine; UG Uganda; US United States; UY Uruguay; UZ Uzbekistan; VA Vatican City;
    VC Saint Vincent and the Grenadines; VE Venezuela; VI US Virgin Islands; VN Vietnam;
    VU Vanuatu; WF Wallis and Futuna; WS Samoa; YE Yemen; YT Mayotte; ZA South Africa; ZW Zimbabwe
"""

#: Other names, and what people call their own countries.
_OTHER = """
    AE UAE; AE Emirates; AT Österreich; BA Bosnia; BE Belgique; BE België; BE Belgien; BR Brasil;
    BR Brasilien; BY Belorussia; CH Schweiz; CH Suisse; CH Svizzera; CI Ivory Coast; CN PRC;
    CN People's Republic of China; CZ Czech Republic; CZ Česko; CZ Tschechien; DE Deutschland;
    DE Allemagne; DE Federal Republic of Germany; DK Danmark; DK Dänemark; EE Eesti; ES España;
    ES Spanien; FI Suomi; FI Finnland; FR Frankreich; GB Great Britain; GB Britain; GB England;
    GB Scotland; GB UK; GB Wales; GB Northern Ireland; GR Hellas; HR Hrvatska; HR Kroatien;
    HU Magyarország; HU Ungarn; IE Éire; IE Irland; IN Bharat; IS Ísland; IT Italia; IT Italien;
    JP Nippon; KP DPRK; KR Korea; KR Republic of Korea; LT Lietuva; LV Latvija; MK Macedonia;
    MO Macao; MX México; NL Holland; NL Nederland; NL Niederlande; NO Norge; NO Norwegen;
    PL Polska; PL Polen; PH Philippinen; RO România; RO Rumänien; RU Russian Federation;
    RU Rossiya; SE Sverige; SE Schweden; SI Slovenija; SK Slovensko; SK Slovak Republic; TR Türkiye;
    TR Türkei; TW Republic of China; UA Ukraina; US USA; US United States of America; US America;
    VA Holy See; VN Viet Nam; ZA RSA
"""


def _folded(name: str) -> str:
    """A name without capitals, accents, and what is not a letter."""
    name = unicodedata.normalize("NFKD", name.casefold().replace("&", " and ").replace(".", ""))
    words = "".join(c if c.isalpha() else " " for c in name if not unicodedata.combining(c)).split()
    return " ".join(word for word in words if word != "the")


def _table(text: str) -> dict[str, tuple[str, str]]:
    pairs = (entry.split(maxsplit=1) for entry in " ".join(text.split()).split(";"))
    return {_folded(name): (code, name) for code, name in pairs}


def find(name: str) -> tuple[str, str] | None:
    """The code and the proper spelling of the country that is meant by ``name``, or None."""
    known = _table(_OTHER) | _table(_ENGLISH)
    folded = _folded(name[:80])
    if folded in known:
        return known[folded]
    near = get_close_matches(folded, known, n=1, cutoff=0.85)
    return known[near[0]] if near else None


def english() -> dict[str, str]:
    """The English name of each code."""
    return dict(_table(_ENGLISH).values())
