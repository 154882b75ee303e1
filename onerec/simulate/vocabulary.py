"""Words of the twelve topics and their six sub-topics each: what items are about, in names that people recognise.

A sub-topic is written in two lines: ``name: things``, then ``what one does with them; what belongs to it``.
"""

from dataclasses import dataclass

from onerec.simulate.parameters import SUBTOPICS_PER_TOPIC, TOPICS


@dataclass(frozen=True)
class Subtopic:
    """A sub-topic's words. ``things`` are plural or mass nouns, ``acts`` gerunds that take them as object."""

    name: str
    things: tuple[str, ...]
    acts: tuple[str, ...]
    props: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """A topic: its English and Chinese names, a sign, the places where it happens, and its sub-topics."""

    name: str
    local_name: str
    sign: str
    places: tuple[str, ...]
    subtopics: tuple[Subtopic, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _topic(name: str, local_name: str, sign: str, places: str, lines: str) -> Topic:
    subtopics = []
    stripped = [line.strip() for line in lines.strip().splitlines()]
    for head, rest in zip(stripped[::2], stripped[1::2], strict=True):
        subtopic, _, things = head.partition(": ")
        acts, props = rest.split("; ")
        subtopics.append(Subtopic(subtopic, _words(things), _words(acts), _words(props)))
    return Topic(name, local_name, sign, _words(places), tuple(subtopics))


VOCABULARY = (
    _topic("food", "美食", "🍜", "in a tiny kitchen, at the night market, at grandmother's table", """
        noodles: ramen, udon, rice noodles, hand-pulled noodles
            boiling, slurping, folding; broth, chilli oil, chopsticks, scallions
        baking: sourdough loaves, croissants, cinnamon rolls, cheesecakes
            kneading, glazing, proving; flour, butter, an oven, yeast
        coffee: espressos, cappuccinos, cold brews, latte hearts
            pouring, roasting, tasting; beans, a grinder, steamed milk, crema
        barbecue: ribs, skewers, smoked briskets, grilled corn
            grilling, smoking, carving; charcoal, marinade, tongs, smoke
        salads: beet salads, tomato salads, grain bowls, green slaws
            tossing, chopping, dressing; olive oil, basil, lemons, feta
        sushi: salmon rolls, nigiri, tuna bowls, tempura rolls
            rolling, slicing, plating; wasabi, seaweed, sushi rice, soy sauce"""),
    _topic("travel", "旅行", "🏔️", "off season, with one backpack, on a small budget", """
        mountains: alpine passes, summit trails, glacier lakes, mountain huts
            hiking, crossing, photographing; boots, snow, a ridge, clouds
        beaches: coral beaches, hidden coves, lagoons, surf towns
            finding, swimming, exploring; palms, sand, a hammock, waves
        cities: old towns, rooftop bars, city markets, metro lines
            wandering, mapping, crossing; neon, skylines, alleys, trams
        deserts: dune fields, canyon roads, oasis villages, salt flats
            crossing, camping among, riding; camels, sand, stars, heat
        trains: night trains, mountain railways, sleeper cabins, steam lines
            riding, booking, filming; platforms, tickets, tunnels, rails
        temples: shrine gates, stone pagodas, monastery gardens, cave temples
            visiting, sketching, climbing; incense, bells, lanterns, monks"""),
    _topic("music", "音乐", "🎵", "in one take, live on stage, in the bedroom studio", """
        piano: nocturnes, jazz chords, piano ballads, ragtime tunes
            practising, arranging, improvising; keys, pedals, sheet music, a metronome
        guitar: fingerstyle songs, blues riffs, acoustic covers, power chords
            strumming, picking, learning; strings, a capo, frets, an amplifier
        drums: drum fills, funk grooves, paradiddles, drum solos
            drumming, looping, counting; cymbals, a snare, sticks, a bass drum
        singing: choir songs, harmonies, karaoke hits, lullabies
            singing, recording, harmonising; a microphone, breath, lyrics, vowels
        violin: concertos, fiddle tunes, string duets, vibrato drills
            bowing, tuning, rehearsing; a bow, rosin, strings, an orchestra
        electronic: synth loops, techno sets, drum machine beats, remixes
            mixing, sampling, layering; turntables, knobs, basslines, a sequencer"""),
    _topic("sport", "体育", "⚽", "before sunrise, in the last minute, with the whole team", """
        football: free kicks, penalty saves, long passes, headers
            training, scoring, replaying; a goalkeeper, the pitch, boots, the referee
        basketball: three-pointers, slam dunks, crossovers, fast breaks
            shooting, dribbling, defending; a hoop, the court, a buzzer, rebounds
        running: marathons, trail runs, hill sprints, parkruns
            pacing, finishing, training for; running shoes, a stopwatch, miles, hydration
        swimming: butterfly laps, flip turns, relay swims, open-water swims
            swimming, timing, coaching; goggles, lanes, a pool, chlorine
        tennis: aces, backhands, tie-breaks, drop shots
            serving, returning, practising; a racket, clay courts, the net, match points
        climbing: boulder problems, crack climbs, lead routes, finger holds
            climbing, projecting, belaying; chalk, a harness, ropes, granite"""),
    _topic("animals", "萌宠", "🐱", "when nobody is watching, on a rainy afternoon, for the first time", """
        cats: kittens, tabby cats, sleepy cats, cat naps
            petting, rescuing, filming; whiskers, purring, paws, a cardboard box
        dogs: puppies, border collies, rescue dogs, corgis
            walking, training, washing; a leash, treats, tail wags, a tennis ball
        birds: parrots, owls, hummingbirds, garden finches
            feeding, watching, teaching; feathers, a nest, birdsong, seeds
        horses: foals, ponies, wild horses, dressage horses
            riding, grooming, saddling; a stable, hay, hooves, a mane
        fish: koi, clownfish, bettas, aquarium shrimp
            keeping, feeding, breeding; an aquarium, filters, coral, bubbles
        reptiles: geckos, tortoises, chameleons, corn snakes
            handling, housing, feeding; scales, a terrarium, heat lamps, crickets"""),
    _topic("games", "游戏", "🎮", "on the hardest level, with no tutorial, in one evening", """
        racing: time trials, drift laps, kart races, photo finishes
            winning, drifting, tuning; a controller, lap records, boosts, corners
        strategy: siege battles, build orders, tower defences, empire openings
            planning, countering, winning; armies, resources, a map, fog of war
        puzzles: sliding puzzles, escape rooms, logic grids, riddles
            solving, designing, timing; clues, locks, patterns, hints
        shooters: boss fights, sniper duels, raid runs, last stands
            clearing, surviving, ranking; headshots, loot, a squad, respawns
        building: castle builds, redstone machines, cozy villages, pixel cities
            building, decorating, sharing; blocks, blueprints, islands, textures
        chess: opening traps, endgame studies, blitz games, queen sacrifices
            playing, analysing, losing; a clock, pawns, checkmate, bishops"""),
    _topic("technology", "科技", "🤖", "from scrap parts, in plain words, after a year of use", """
        phones: folding phones, phone cameras, old phones, phone batteries
            reviewing, unboxing, comparing; screens, chargers, pixels, megabytes
        robots: robot arms, robot dogs, line followers, soldering bots
            assembling, programming, testing; servos, sensors, circuits, wires
        coding: sorting algorithms, side projects, compilers, tiny scripts
            debugging, refactoring, explaining; a keyboard, loops, bugs, a terminal
        cameras: vintage lenses, film cameras, gimbals, action cameras
            testing, cleaning, choosing; apertures, shutters, a tripod, bokeh
        drones: racing drones, aerial shots, drone kits, light shows
            flying, landing, repairing; propellers, batteries, altitude, a gimbal
        printing: printed gears, miniatures, filament tests, printed lamps
            printing, sanding, designing; nozzles, layers, filament, a heated bed"""),
    _topic("fashion", "时尚", "👗", "for under fifty, from the thrift shop, in ten minutes", """
        dresses: summer dresses, wedding gowns, wrap dresses, silk slips
            sewing, styling, altering; hems, linen, a mannequin, lace
        sneakers: high tops, retro runners, limited sneakers, custom sneakers
            cleaning, collecting, lacing; laces, soles, boxes, suede
        makeup: smoky eyes, red lips, glass skin, winged liners
            blending, applying, removing; brushes, palettes, a mirror, blush
        hair: braids, curtain bangs, curls, pixie cuts
            braiding, cutting, dyeing; combs, hairpins, a dryer, conditioner
        jewellery: silver rings, beaded necklaces, pearl earrings, charm bracelets
            forging, threading, polishing; gemstones, pliers, clasps, gold
        vintage: denim jackets, wool coats, band shirts, corduroy suits
            thrifting, mending, layering; patches, buttons, hangers, tweed"""),
    _topic("garden", "园艺", "🌿", "on a balcony, through the winter, from a single seed", """
        roses: climbing roses, tea roses, rose cuttings, rose hedges
            pruning, planting, grafting; thorns, petals, compost, a trellis
        vegetables: tomatoes, pumpkins, carrots, runner beans
            harvesting, sowing, watering; raised beds, seedlings, mulch, a spade
        bonsai: maple bonsai, juniper bonsai, bonsai roots, pine bonsai
            wiring, trimming, repotting; wire, moss, shallow pots, branches
        cacti: barrel cacti, succulents, desert planters, cactus flowers
            potting, propagating, rescuing; spines, gravel, sunlight, clay pots
        mushrooms: oyster mushrooms, morels, forest mushrooms, mushroom logs
            growing, foraging, identifying; spores, a basket, mycelium, damp logs
        orchids: moth orchids, orchid keikis, rare orchids, orchid mounts
            misting, reblooming, dividing; bark, humidity, blooms, aerial roots"""),
    _topic("vehicles", "汽车", "🚗", "in an old barn, at full throttle, on the coast road", """
        classics: convertibles, barn finds, muscle cars, vintage coupes
            restoring, driving, polishing; chrome, a carburettor, leather, rust
        motorcycles: cafe racers, dirt bikes, touring bikes, scooters
            riding, customising, maintaining; helmets, a chain, exhausts, throttle
        rally: rally stages, gravel corners, night stages, hill jumps
            racing, codriving, filming; pace notes, mud, turbo, handbrake
        trucks: monster trucks, long hauls, tow trucks, camper trucks
            hauling, driving, loading; diesel, trailers, big wheels, cargo
        electric: electric cars, battery packs, fast chargers, range tests
            charging, testing, converting; kilowatts, volts, torque, a cable
        bicycles: gravel bikes, fixed gears, cargo bikes, mountain bikes
            fixing, touring with, building; spokes, pedals, a saddle, derailleurs"""),
    _topic("science", "科学", "🔬", "explained in a minute, at home, under the microscope", """
        astronomy: galaxies, eclipses, meteor showers, moon craters
            observing, photographing, mapping; a telescope, orbits, stars, light years
        chemistry: crystals, flame tests, foaming reactions, indicator dyes
            mixing, growing, heating; beakers, acids, molecules, goggles
        dinosaurs: fossils, raptors, dinosaur eggs, trilobites
            digging up, dating, reconstructing; bones, sediment, claws, a brush
        electricity: tesla coils, magnets, circuits, plasma globes
            building, measuring, sparking; copper, voltage, coils, current
        volcanoes: lava flows, geysers, eruptions, ash clouds
            visiting, modelling, sampling; magma, basalt, a crater, sulphur
        oceans: jellyfish, deep-sea vents, tide pools, whale songs
            diving with, tracking, studying; plankton, sonar, currents, the abyss"""),
    _topic("dance", "舞蹈", "💃", "in a parking lot, step by step, on opening night", """
        ballet: pirouettes, grand jetes, barre routines, pas de deux
            rehearsing, spinning, stretching for; pointe shoes, tutus, a barre, tendus
        hiphop: freezes, popping routines, krump battles, footwork
            battling, freestyling, learning; sneakers, a cypher, beats, windmills
        tango: tango walks, ochos, milongas, tango embraces
            leading, following, dancing; bandoneons, heels, a rose, the pause
        salsa: salsa turns, cuban steps, casino wheels, shines
            spinning, counting, partnering; congas, hips, rhythm, clave
        folk: circle dances, clog dances, sword dances, ribbon dances
            dancing, teaching, reviving; ribbons, fiddles, costumes, villages
        tap: tap rhythms, time steps, shuffles, tap duets
            tapping, drilling, improvising; tap shoes, a wooden floor, syncopation, jazz"""),
)  # fmt: skip

ADJECTIVES = _words("quiet, perfect, strange, honest, tiny, golden, forgotten, slow, wild, simple, brave, cheap, secret, endless")
PEOPLE = _words("Zoë, Łukasz, 美咲, Amara, José, Noor, Ingrid, Kofi, Анна, Mateo, Søren, 小明, Leïla, Priya")
AUDIENCES = _words("beginners, busy people, my neighbour, complete beginners, patient people, the whole family")
CLOSINGS = (
    "Tell me what you would do differently!",
    "Save this one for later.",
    "The result surprised everyone…",
    "Part two comes tomorrow.",
    "Nobody told me it was this easy.",
    "I would do it all again.",
)

if len(VOCABULARY) != TOPICS or any(len(topic.subtopics) != SUBTOPICS_PER_TOPIC for topic in VOCABULARY):
    raise RuntimeError("the vocabulary does not have the world's number of topics and sub-topics")


def subtopic_of(number: int) -> tuple[Topic, Subtopic]:
    """Topic and sub-topic of a sub-topic's number (topic · SUBTOPICS_PER_TOPIC + position)."""
    topic = VOCABULARY[number // SUBTOPICS_PER_TOPIC]
    return topic, topic.subtopics[number % SUBTOPICS_PER_TOPIC]
