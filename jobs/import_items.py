"""spark-submit --properties-file FILE jobs/import_items.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import import_items

if __name__ == "__main__":
    sys.exit(main(import_items))
