"""spark-submit --properties-file FILE jobs/import_queries.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import import_queries

if __name__ == "__main__":
    sys.exit(main(import_queries))
