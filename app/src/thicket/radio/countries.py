# SPDX-License-Identifier: Apache-2.0
"""The countries that the wireless regulatory database knows.

For a code that its database does not have, the kernel silently follows the world's rules.
"""

_LISTED = """
    AD AE AF AI AL AM AN AR AS AT AU AW AZ BA BB BD BE BF BG BH BL BM BN BO BR BS BT BW BY BZ CA
    CF CH CI CL CN CO CR CU CX CY CZ DE DK DM DO DZ EC EE EG ES ET FI FM FO FR GB GD GE GF GH GI
    GL GP GR GT GU GY HK HN HR HT HU ID IE IL IM IN IR IS IT JM JO JP KE KH KN KP KR KW KY KZ LB
    LC LI LK LS LT LU LV MA MC MD ME MF MH MK MN MO MP MQ MR MT MU MV MW MX MY NA NG NI NL NO NP
    NZ OM PA PE PF PG PH PK PL PM PR PT PW PY QA RE RO RS RU RW SA SE SG SI SK SM SN SR SV SX SY
    TC TD TG TH TN TR TT TW TZ UA UG US UY UZ VA VC VE VI VN VU WF WS YE YT ZA ZW
"""

#: The codes of wireless-regdb 2026.09.03 without "00". AN, which ISO withdrew, is still among them.
CODES = frozenset(_LISTED.split())

#: Wrong codes that people write, with the country and its code.
_MEANT = {
    "UK": ("the United Kingdom", "GB"),
    "EL": ("Greece", "GR"),
    "EN": ("England", "GB"),
}


def fault(code: str) -> str | None:
    """Why no regulatory domain has ``code``, and what to write instead.

    :returns: None when one has it.
    """
    if code == "00" or code in CODES:
        return None
    large = code.strip().upper()
    if large in _MEANT:
        country, right = _MEANT[large]
        return f'is in no regulatory database: the code of {country} is "{right}"'
    if large in CODES or large == "00":
        return f'must be a country code of two capital letters: write "{large}"'
    if len(code) == 2 and code.isascii() and code.isalpha():
        return f"is in no regulatory database: no country has the code {large} there"
    from thicket.radio import country_names  # rare: only to help with a mistake

    named = country_names.find(code)
    if named is not None:
        return f'must be a country code of two capital letters: that of {named[1]} is "{named[0]}"'
    return 'must be a country code of two capital letters such as "DE", or "00" for none'
