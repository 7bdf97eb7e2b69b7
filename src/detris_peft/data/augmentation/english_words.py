"""English words of referring expressions whose meaning does not change in a mirrored image.

Left and right are handled in `mirroring.py`. Words are missing on purpose if they depend on the direction ("west",
"clockwise", "clock" in "3 on the clock", "driver" in "driver's side"), or concern text, which cannot be read in a
mirrored image ("letter", "says"). Plurals and possessives are recognized by their singular.
"""

ENGLISH_WORDS = frozenset(
    """
a about above across adult against air airplane all almost alone along also am among an and animal another any anyone
apple apron are area arm around as at away baby back background backpack bag bald ball banana band bank bar bare
barefoot base baseball basket basketball bat bathroom bathtub batter battery be beach bear beard bed bedroom bedside
bedspread bee beer behind beige being below belt bench bending beneath bent beside best between bib bicycle big bigger
biggest bike bikini bird bite black blanket blond blonde blue blurred blurry board boat body book boot both bottle
bottom bottommost bow bowl box boy branch bread brick bride bridge bright brighter broccoli brown brunette bucket
building bun bunch burger burner bus bush but by cabinet cable cake calf camera can candle cap car cardboard carpet
carries carrot carrying cart case cat catcher ceiling cell center central centre ceramic chain chair checkered cheek
cheese chef chefs chest chicken child children chin chocolate circle circular city clean clear close closer closest
cloth clothes clothing cloud coat coffee collar color colored colour coloured comforter computer cone container cook
cookie cooking cord corner couch counter couple court cover covered cow cowboy cream crib cross crouching crowd cup
cupboard cupcake curly curtain cushion cut cutting cyan dark darker darkest desk dessert diamond dining dirty dish
dishwasher dog doll donut door doughnut down drawer dress drink drinking driving drum duck each ear eat eating eats
edge egg eight elbow elder elderly elephant eleven ellipse empty entire every everyone ewe eye eyed eyeglasses face
facing family far farther farthest fat father fattest faucet feeding feet female fence few field finger fire fish five
flag flat floor floral flower flowered flying food foot for fork four frame fridge fries frisbee from front fruit full
furniture furry furthest game garden gate gear getting giraffe girl given glass glasses glove go goat going gold golden
good grapes grass gray green grey grizzly groom ground group guitar guy hair haired half hamburger hand handbag handing
handle hanging hard has hat having hay he head headband headboard heart helmet her herd herself hexagon hidden high
higher highest him himself hip his hit hitting holding holds hole hoodie horizontal horn horse hot hotdog house how
human hydrant in inside instrument is island isn't it item its itself jacket jar jeans jersey jet juice jump jumper
jumping jumps just keyboard kid kitchen kite kitten knee kneeling knife knit ladder lady lake lamb lamp lap laptop
large larger largest laying leaf leaning leather leave leaves leftover leg lettuce level lid light lighter like lime
line lit little living log long longer longest look looking looks low lower lowest luggage lying magenta main male man
mane many maroon mat mattress meat men metal microphone microwave mid middle milk minivan mirror mom monitor more most
mostly mother motor motorbike motorcycle motorcyclist mountain mouse mouth mug multicolored mustache my nap napkin navy
near nearer nearest neck necklace next nine no nobody nose not object ocean of off officer old older oldest olive on
one only open orange other others out outer outfit outside oval oven over own pack painting pair pale pan pants paper
park parked part partial partially partly pastry patterned pen pentagon people pepper person phone photo piano pickle
pickup picture pictured pie piece pig pillow pink pitcher pizza plaid plain plane plant plastic plate play player
playing plays plug pointed pointing polar pole police polka pony pool porch post pot potato potted pulling pullover
puppy purple purse pushing racket racquet radio rail railing rain ram ranch reaching rear rectangle rectangular red
refrigerator remote resting ride rider rides riding road robe rock roof room rope round rounded row rug run runner
running runs sad saddle sailboat salad same sandal sandwich sauce sausage scarf scissors scooter screen sea seat seated
section see seen seven shade shadow shape shaped she sheep sheet shelf shiny ship shirt shirtless shoe short shorter
shortest shorts shoulder show showing side sign silver single sink sister sit sits sitting six skateboard skateboarder
skater ski skier skiing skinny skirt sky sleeping sleeve sleeved slice slightly small smaller smallest smiling smoking
sneaker snow snowboard snowboarder soap soccer sock soda sofa soldier solid some someone something soup space speaker
sponge spoon spot spotted square squatting stack staircase stairs stand standing stands star statue steak step stick
sticking stool stop stopped stove straight strap straw strawberry street stripe striped stroller stuff stuffed suit
suitcase sun sunglasses surf surfboard surfer surrounded suv sweater sweatshirt swimming swimsuit swing swinging t
table tail taking talk talking tall taller tallest tan tank taxi tea teal teddy tee television ten tennis than that the
their them there they thick thicker thin thing thinner this those three throwing tie tile tiny tire to toddler together
toilet tomato tongue toothbrush top topmost touching toward towards towel tower toy track traffic trail trailer train
transparent trash tray tree triangle tricycle trouser truck trunk tub tube turning turquoise tv twelve two umbrella
under underneath uniform up upper uppermost upright upside van vase vegetable vertical very vest video view violet
visible wagon waiter walk walking walks wall wallet watch watching water wave we wear wearing wears wedding wet wetsuit
what wheel wheelchair where which white who whole whose wide wii window wine wing wire with without wolf woman women
wood wooden wool worker wrist yellow you young younger youngest your zebra zoo
    """.split()  # noqa: SIM905  more readable than a list with quotes
)
