"""Makes `corpus.jsonl` and `questions.jsonl`: short passages on elements and countries, and what they answer.

    python examples/search_r1/make_data.py examples/search_r1

Every line is the same each time. A passage is `{"title", "text"}`; a question `{"prompt", "label"}`, with all
the ways in which its answer may be written.
"""

import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SEED = 20240229
INSTRUCTION = (
    "Answer the question. Look up what you do not know, as often as you need to, and put the answer, a few "
    "words, between <answer> and </answer>."
)

ELEMENTS = (
    "H Hydrogen He Helium Li Lithium Be Beryllium B Boron C Carbon N Nitrogen O Oxygen F Fluorine Ne Neon "
    "Na Sodium Mg Magnesium Al Aluminium Si Silicon P Phosphorus S Sulfur Cl Chlorine Ar Argon K Potassium "
    "Ca Calcium Sc Scandium Ti Titanium V Vanadium Cr Chromium Mn Manganese Fe Iron Co Cobalt Ni Nickel "
    "Cu Copper Zn Zinc Ga Gallium Ge Germanium As Arsenic Se Selenium Br Bromine Kr Krypton Rb Rubidium "
    "Sr Strontium Y Yttrium Zr Zirconium Nb Niobium Mo Molybdenum Tc Technetium Ru Ruthenium Rh Rhodium "
    "Pd Palladium Ag Silver Cd Cadmium In Indium Sn Tin Sb Antimony Te Tellurium I Iodine Xe Xenon "
    "Cs Caesium Ba Barium La Lanthanum Ce Cerium Pr Praseodymium Nd Neodymium Pm Promethium Sm Samarium "
    "Eu Europium Gd Gadolinium Tb Terbium Dy Dysprosium Ho Holmium Er Erbium Tm Thulium Yb Ytterbium "
    "Lu Lutetium Hf Hafnium Ta Tantalum W Tungsten Re Rhenium Os Osmium Ir Iridium Pt Platinum Au Gold "
    "Hg Mercury Tl Thallium Pb Lead Bi Bismuth Po Polonium At Astatine Rn Radon"
)
"""Symbols and names of the first 86 elements, by atomic number."""

LAST_OF_PERIOD = (2, 10, 18, 36, 54, 86)

COUNTRIES: Mapping[str, str] = {
    "Europe": (
        "Albania Tirana, Austria Vienna, Belgium Brussels, Bulgaria Sofia, Croatia Zagreb, "
        "Denmark Copenhagen, Estonia Tallinn, Finland Helsinki, France Paris, Germany Berlin, "
        "Greece Athens, Hungary Budapest, Iceland Reykjavik, Ireland Dublin, Italy Rome, "
        "Latvia Riga, Lithuania Vilnius, Malta Valletta, Norway Oslo, Poland Warsaw, "
        "Portugal Lisbon, Romania Bucharest, Serbia Belgrade, Slovakia Bratislava, "
        "Slovenia Ljubljana, Spain Madrid, Sweden Stockholm, Switzerland Bern, Ukraine Kyiv"
    ),
    "Asia": (
        "Bangladesh Dhaka, Bhutan Thimphu, Cambodia Phnom_Penh, China Beijing, India New_Delhi, "
        "Iraq Baghdad, Japan Tokyo, Jordan Amman, Laos Vientiane, Lebanon Beirut, "
        "Mongolia Ulaanbaatar, Nepal Kathmandu, Oman Muscat, Pakistan Islamabad, Thailand Bangkok, "
        "Uzbekistan Tashkent, Vietnam Hanoi"
    ),
    "Africa": (
        "Algeria Algiers, Angola Luanda, Botswana Gaborone, Chad N'Djamena, Egypt Cairo, "
        "Ethiopia Addis_Ababa, Ghana Accra, Kenya Nairobi, Libya Tripoli, Madagascar Antananarivo, "
        "Mali Bamako, Morocco Rabat, Mozambique Maputo, Namibia Windhoek, Nigeria Abuja, "
        "Rwanda Kigali, Senegal Dakar, Somalia Mogadishu, Sudan Khartoum, Tunisia Tunis, "
        "Uganda Kampala, Zambia Lusaka, Zimbabwe Harare"
    ),
    "the Americas": (
        "Argentina Buenos_Aires, Brazil Brasília, Canada Ottawa, Chile Santiago, Colombia Bogotá, "
        "Cuba Havana, Ecuador Quito, Guyana Georgetown, Haiti Port-au-Prince, "
        "Honduras Tegucigalpa, Jamaica Kingston, Mexico Mexico_City, Nicaragua Managua, "
        "Paraguay Asunción, Peru Lima, Suriname Paramaribo, Uruguay Montevideo, Venezuela Caracas"
    ),
    "Oceania": "Australia Canberra, Fiji Suva, New_Zealand Wellington, Samoa Apia, Tonga Nuku'alofa",
}
"""Countries and their capitals, by continent; an underscore stands for a space."""


def passages_and_questions() -> Iterator[tuple[dict[str, str], list[tuple[str, list[str]]]]]:
    """Yield each passage with the questions that it answers, and their answers."""
    words = ELEMENTS.split()
    names = words[1::2]
    for number, (symbol, name) in enumerate(zip(words[::2], names, strict=True), start=1):
        period = sum(number > last for last in LAST_OF_PERIOD) + 1
        before = f" It follows {names[number - 2].lower()} in the periodic table." if number > 1 else ""
        text = (
            f"{name} is a chemical element of period {period}. Its symbol is {symbol} and its atomic number "
            f"is {number}.{before}"
        )
        yield (
            {"title": name, "text": text},
            [
                (f"Which chemical element has the atomic number {number}?", [name]),
                (f"What is the symbol of the chemical element {name.lower()}?", [symbol]),
            ],
        )
    for continent, listed in COUNTRIES.items():
        for entry in listed.split(", "):
            country, capital = (word.replace("_", " ") for word in entry.split(" "))
            yield (
                {
                    "title": country,
                    "text": f"{country} is a country in {continent}. Its capital is {capital}.",
                },
                [
                    (f"Which country has the capital {capital}?", [country]),
                    (f"What is the capital of {country}?", [capital]),
                ],
            )


def main(folder: Path) -> None:
    """Write both files to `folder`."""
    found = list(passages_and_questions())
    questions = [
        {"prompt": [{"role": "user", "content": f"{INSTRUCTION}\n{question}"}], "label": answers}
        for _, asked in found
        for question, answers in asked
    ]
    random.Random(SEED).shuffle(questions)
    _write(folder / "corpus.jsonl", (passage for passage, _ in found))
    _write(folder / "questions.jsonl", questions)


def _write(path: Path, lines: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
