"""spark-submit --properties-file FILE jobs/import_shopper_links.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import import_shopper_links

if __name__ == "__main__":
    sys.exit(main(import_shopper_links))
