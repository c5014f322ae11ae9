from sotto.cli import main

main()
